"""Makes the DeBERTa folders beside this file, as make.py makes the others and with the same versions, and peft 0.21.2.

    python make_deberta.py

golden.safetensors has what make.py describes, and what PEFT computes with LoRA of rank 3 and alpha 5 on the folder's model:

* labels     the classes of the three sequences, int32
* loss       the mean cross-entropy, and the factors and their gradients as
* factor.MODULE.lora_A, factor.MODULE.lora_B, grad.MODULE.lora_A, grad.MODULE.lora_B

deberta-buckets.safetensors has the buckets of the distances -(n - 1) .. n - 1 for a few (buckets, max_distance), n = max_distance.
"""

import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from make import HERE, randomize, write

# Longer than the buckets reach, shorter, and one token.
LENGTHS = [23, 7, 1]


def batch(vocab_size, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, vocab_size, (length,), generator=generator) for length in LENGTHS]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return rows, ids, mask


def results(model, seed, features):
    rows, ids, mask = batch(model.config.vocab_size, seed)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, output_hidden_states=True)
        read = features(model, output.hidden_states[-1])
        logits = output.logits if "logits" in output else read
    golden = {}
    for n, row in enumerate(rows):
        golden[f"ids.{n}"] = row.int()
        golden[f"logits.{n}"] = logits[n : n + 1].clone()
        golden[f"features.{n}"] = read[n : n + 1].clone()
    return golden


def gradients(model, seed, target_modules):
    _, ids, mask = batch(model.config.vocab_size, seed)
    labels = torch.tensor([1, 0, 2])
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=target_modules)
    )
    adapted.eval()
    generator = torch.Generator().manual_seed(seed + 1)
    factors = {}
    for name, parameter in sorted(adapted.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
            module, factor = name.removeprefix("base_model.model.").split(".lora_")
            factors[f"{module}.lora_{factor[0]}"] = parameter
    loss = torch.nn.functional.cross_entropy(adapted(ids, attention_mask=mask).logits, labels)
    loss.backward()
    golden = {"labels": labels.int(), "loss": loss.detach()[None].clone()}
    for name, parameter in factors.items():
        golden[f"factor.{name}"] = parameter.data.clone()
        golden[f"grad.{name}"] = parameter.grad.clone()
    return golden


def pooled(model, hidden):
    return model.pooler(hidden)


def config(**changes):
    options = dict(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=32, type_vocab_size=0, relative_attention=True, position_buckets=8,
        max_relative_positions=-1, position_biased_input=False, pos_att_type="p2c|c2p", norm_rel_ebd="layer_norm",
        share_att_key=True, layer_norm_eps=1e-7, num_labels=3,
    )
    return transformers.DebertaV2Config(**(options | changes))


def classifier(name, options, seed, target_modules):
    model = randomize(transformers.DebertaV2ForSequenceClassification(options), seed)
    golden = results(model, seed + 1, pooled)
    write(name, model, golden)
    golden |= gradients(model, seed + 1, target_modules)
    save_file(golden, HERE / name / "golden.safetensors")


def v3():
    """As deberta-v3-base; LoRA where the paper has it, and on the keys, whose factors act on positions too."""
    options = config(id2label={0: "entails", 1: "neutral", 2: "contradicts"})
    classifier("deberta-v3", options, 21, ["query_proj", "key_proj", "value_proj"])


def v2():
    """As deberta-v2-xxlarge, with its convolution; and with what no published model of this size has: a narrow embedding with
    positions and types of its own."""
    options = config(
        conv_kernel_size=3, conv_act="gelu", attention_head_size=8, embedding_size=14, position_biased_input=True, type_vocab_size=2,
        position_buckets=6, max_relative_positions=20,
    )
    classifier("deberta-v2", options, 23, ["query_proj", "key_proj", "embed_proj", "output.dense"])


def bare():
    """A body alone, with one kind of positions, not normalized and without buckets, so that far distances are cut."""
    options = config(pos_att_type="c2p", norm_rel_ebd="none", position_buckets=-1, max_relative_positions=9)
    model = randomize(transformers.DebertaV2Model(options), 25)
    write("deberta-bare", model, results(model, 26, lambda _, hidden: hidden[:, 0]))


def buckets():
    golden = {}
    for count, far in [(256, 512), (32, 128), (6, 20)]:
        distances = torch.arange(1 - far, far)
        golden[f"{count}.{far}"] = make_log_bucket_position(distances, count, far).int()
    save_file(golden, HERE / "deberta-buckets.safetensors")


if __name__ == "__main__":
    for make in (v3, v2, bare, buckets):
        make()
