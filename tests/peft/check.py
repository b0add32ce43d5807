"""Compares adapters with the PEFT library, both ways. Run by the test `peft_library`, see README.md.

    python check.py FOLDER

FOLDER has a folder for each case with

* case.json           base: a folder of transformers, or a checkpoint of llama2.c; options: arguments of LoraConfig; class: that of transformers
                      and its number of labels, if it is not the one that the folder names
* ours                a PEFT folder that Rankpatch has written
* ours.safetensors    ids.N, int32, and logits.N, float32, that Rankpatch computes with it; for each bias that is trained its gradient for half the
                      sum of all squared logits, grad.KEY

The folder must load, adapt just the modules that LoraConfig names, and give the same logits and gradients. Then the library makes an adapter of its own,
all of it random, and writes it to theirs, with its logits for the same ids in theirs.safetensors.
"""

import json
import math
import pathlib
import struct
import sys

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-4


def load(about):
    base = pathlib.Path(about["base"])
    if base.suffix == ".bin":
        return llama2c(base).eval()
    if about["class"]:
        name, labels = about["class"]
        return getattr(transformers, name).from_pretrained(base, num_labels=labels, dtype=torch.float32).eval()
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(base, dtype=torch.float32).eval()


def llama2c(path):
    """The Llama of transformers that a llama2.c checkpoint (version 0) is."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack("<7i", data[:28])
    assert vocab > 0, "the classifier is the embedding"
    numbers = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    start = 0

    def take(*shape):
        nonlocal start
        count = math.prod(shape)
        start += count
        return numbers[start - count : start].reshape(shape).clone()

    config = transformers.LlamaConfig(
        hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        vocab_size=vocab, max_position_embeddings=positions, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
    )
    kv_dim = dim // heads * kv_heads

    def halves(weight):
        # llama2.c turns the pairs (2i, 2i + 1) of a head, transformers (i, i + half).
        head = dim // heads
        return weight.reshape(layers, -1, head // 2, 2, dim).transpose(2, 3).reshape(weight.shape)

    embedding = take(vocab, dim)
    parts = {"input_layernorm": take(layers, dim), "self_attn.q_proj": halves(take(layers, dim, dim))}
    parts |= {"self_attn.k_proj": halves(take(layers, kv_dim, dim)), "self_attn.v_proj": take(layers, kv_dim, dim)}
    parts |= {"self_attn.o_proj": take(layers, dim, dim), "post_attention_layernorm": take(layers, dim)}
    parts |= {"mlp.gate_proj": take(layers, hidden, dim), "mlp.down_proj": take(layers, dim, hidden), "mlp.up_proj": take(layers, hidden, dim)}
    state = {f"model.layers.{n}.{part}.weight": values[n] for part, values in parts.items() for n in range(layers)}
    state |= {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding, "model.norm.weight": take(dim)}
    model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model


def keys(folder):
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def gradients(model, tensors, names):
    """Of half the sum of all squared logits."""
    found = {name: parameter for name, parameter in model.named_parameters() if name in names}
    for parameter in found.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        loss = sum(0.5 * values.square().sum() for values in logits(model, tensors))
        grads = torch.autograd.grad(loss, list(found.values()))
    return dict(zip(found, grads))


def logits(model, tensors):
    rows = sum(name.startswith("ids.") for name in tensors)
    found = [model(tensors[f"ids.{n}"].long()[None]).logits for n in range(rows)]
    return [values.reshape(-1, values.shape[-1]) for values in found]


@torch.no_grad()
def check(case):
    about = json.loads((case / "case.json").read_text())
    ours = load_file(case / "ours.safetensors")
    model = peft.PeftModel.from_pretrained(load(about), case / "ours").eval()
    found = logits(model, ours)
    worst = max((values - ours[f"logits.{n}"]).abs().max().item() for n, values in enumerate(found))
    plain = logits(load(about), ours)
    change = max((values - other).abs().max().item() for values, other in zip(found, plain))
    print(f"{case.name}: written here, read there: logits differ by {worst:.1e}, the adapter changes them by {change:.1e}")
    scale = max(1.0, max(values.abs().max().item() for values in found))
    assert worst < TOLERANCE * scale < 100 * TOLERANCE * scale < change, (worst, change, scale)

    names = {name.removeprefix("grad."): values for name, values in ours.items() if name.startswith("grad.")}
    if names:
        theirs = gradients(model, ours, names)
        assert theirs.keys() == names.keys(), theirs.keys() ^ names.keys()
        largest = max(values.abs().max().item() for values in theirs.values())
        off = max((values - names[name]).abs().max().item() for name, values in theirs.items())
        print(f"{case.name}: gradients of {len(names)} biases differ by {off / largest:.1e} of the largest")
        assert off < TOLERANCE * largest, (off, largest)

    theirs = peft.get_peft_model(load(about), peft.LoraConfig(**about["options"]))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sorted(theirs.named_parameters()):
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.eval().save_pretrained(case / "theirs")
    ours_keys, their_keys = keys(case / "ours"), keys(case / "theirs")
    # With all biases the library writes that of a saved module three times.
    their_keys = {key: shape for key, shape in their_keys.items() if not key.endswith((".original_module.bias", ".modules_to_save.bias"))}
    # A module that is several sites here has the sum of their ranks there.
    assert not about["same_shapes"] or ours_keys == their_keys, ours_keys.items() ^ their_keys.items()
    assert ours_keys.keys() == their_keys.keys(), ours_keys.keys() ^ their_keys.keys()
    golden = {f"logits.{n}": values.contiguous() for n, values in enumerate(logits(theirs, ours))}
    save_file(golden, case / "theirs.safetensors")


def main():
    folder = pathlib.Path(sys.argv[1])
    for case in sorted(folder.iterdir()):
        check(case)


if __name__ == "__main__":
    main()
