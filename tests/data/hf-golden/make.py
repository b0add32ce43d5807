"""Makes the folders beside this file: small random models as transformers writes them, and what transformers computes.

Versions that made them: torch 2.15.0, transformers 5.24.0, peft 0.21.2, tokenizers 0.23.3, safetensors 0.8.0, Python 3.

    python make.py [NAME ...]

Every parameter is random, biases and norms too, so that no weight can be taken for another unseen. Each folder has
config.json and model.safetensors (or shards) from save_pretrained, and golden.safetensors with

* ids.N      one sequence each, int32
* logits.N   the model's logits for it, float32 [rows, outputs], or [1, outputs] where a sequence is classified
* features.N what a task head reads, float32 [rows, width] or [1, width]

Some have an adapter of PEFT, all of it random, in the folder peft, and logits with it in peft/golden.safetensors.

bert, gpt2 and llama also have a tokenizer.json, trained on four sentences, and tokens.json: ids of some texts with and without special
tokens, as the tokenizers library gives them.

Sequences of encoders run padded and masked in one batch, as classifiers do.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
LENGTHS = [11, 5, 1]


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name.lower() or ".ln_" in name
        if norm and name.endswith("weight"):
            parameter.data = 1 + 0.3 * noise
        elif parameter.dim() == 1:
            parameter.data = 0.3 * noise
        elif "embed" in name or "wte" in name or "wpe" in name:
            parameter.data = 0.7 * noise
        else:
            # So that outputs are about as large as inputs.
            parameter.data = 1.2 * noise / parameter.shape[-1] ** 0.5
    model.eval()
    model.tie_weights()
    return model


def sequences(vocab_size, seed, first=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(first, vocab_size, (length,), generator=generator) for length in LENGTHS]


def write(name, model, golden, **saving):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    model.save_pretrained(folder, **saving)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(golden, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size} bytes")


def adapt(name, model, seed, targets, **options):
    """Puts a random adapter on the model, in place, and writes it."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, **options)
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.eval()
    model.save_pretrained(HERE / name / "peft")
    (HERE / name / "peft" / "README.md").unlink(missing_ok=True)
    return model


@torch.no_grad()
def decoder(name, model, seed, dtype=torch.float32, targets=None, **saving):
    model = randomize(model, seed)
    for parameter in model.parameters():
        # What the file holds, computed in float32; angles are never rounded.
        parameter.data = parameter.data.to(dtype).float()
    golden = {}
    for n, ids in enumerate(sequences(model.config.vocab_size, seed + 1)):
        output = model(ids[None], output_hidden_states=True)
        golden[f"ids.{n}"] = ids.int()
        golden[f"logits.{n}"] = output.logits[0].contiguous()
        golden[f"features.{n}"] = output.hidden_states[-1][0].contiguous()
    write(name, model.to(dtype), golden, **saving)
    if targets:
        model = adapt(name, model, seed + 100, targets)
        rows = sequences(model.config.vocab_size, seed + 1)
        golden = {f"logits.{n}": model(ids[None]).logits[0].contiguous() for n, ids in enumerate(rows)}
        save_file(golden, HERE / name / "peft" / "golden.safetensors")


@torch.no_grad()
def encoder(name, model, seed, features, first=0, targets=None):
    """`features` gives what a task head reads from the model and its last hidden state."""
    model = randomize(model, seed)
    padding = model.config.pad_token_id
    rows = sequences(model.config.vocab_size, seed + 1, first)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    output = model(ids, attention_mask=mask, output_hidden_states=True)
    read = features(model, output.hidden_states[-1])
    golden = {}
    for n, row in enumerate(rows):
        golden[f"ids.{n}"] = row.int()
        golden[f"logits.{n}"] = output.logits[n : n + 1].contiguous()
        golden[f"features.{n}"] = read[n : n + 1].contiguous()
    write(name, model, golden)
    if targets:
        model = adapt(name, model, seed + 100, targets, modules_to_save=["classifier"])
        logits = model(ids, attention_mask=mask).logits
        golden = {f"logits.{n}": logits[n : n + 1].contiguous() for n in range(len(rows))}
        save_file(golden, HERE / name / "peft" / "golden.safetensors")


CORPUS = ["the cat sat on the mat, it's 42 cats", "that's the hat of a sad cat", "a cat ate the hat on the mat", "it sat"]
TEXTS = ["the cat's hat sat on a mat", "it's 42", "  that sad cat  ate", "a cat"]


def tokenizer(name, tokenizer, trainer, processor):
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processor(tokenizer)
    folder = HERE / name
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    encode = lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids
    lines = [{"text": text, "whole": encode(text, True), "plain": encode(text, False)} for text in TEXTS]
    (folder / "tokens.json").write_text(json.dumps(lines, indent=1) + "\n")


def llama():
    config = transformers.LlamaConfig(
        vocab_size=67, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=64, rms_norm_eps=1e-5, attention_bias=True,
        mlp_bias=True, tie_word_embeddings=False,
        rope_parameters={"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    )
    decoder("llama", transformers.LlamaForCausalLM(config), 1, targets=["q_proj", "k_proj", "v_proj", "down_proj"])
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=67, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer("llama", bpe, trainer, lambda _: processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)]))


def llama_tied():
    """bfloat16, in shards, without biases, angles scaled linearly, output tied to the embedding."""
    config = transformers.LlamaConfig(
        vocab_size=51, hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=48, tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5},
    )
    model = transformers.LlamaForCausalLM(config)
    decoder("llama-tied", model, 3, torch.bfloat16, max_shard_size="6KB")


def mistral():
    config = transformers.MistralConfig(
        vocab_size=43, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=64, sliding_window=12,
    )
    decoder("mistral", transformers.MistralForCausalLM(config), 5)


def qwen2():
    """float16, with biases of q, k and v."""
    config = transformers.Qwen2Config(
        vocab_size=47, hidden_size=18, intermediate_size=30, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=40, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    decoder("qwen2", transformers.Qwen2ForCausalLM(config), 7, torch.float16)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=32, n_embd=20, n_layer=2, n_head=4, n_inner=52, bos_token_id=0, eos_token_id=0,
    )
    decoder("gpt2", transformers.GPT2LMHeadModel(config), 9, targets=["c_attn", "c_proj"])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=61, special_tokens=["<|endoftext|>"])
    tokenizer("gpt2", bpe, trainer, lambda _: processors.ByteLevel(trim_offsets=False))


def bert():
    config = transformers.BertConfig(
        vocab_size=59, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=26, num_labels=3, id2label={0: "calm", 1: "loud", 2: "odd"},
    )
    model = transformers.BertForSequenceClassification(config)
    encoder("bert", model, 11, lambda model, hidden: model.bert.pooler(hidden),
            targets=["query", "value", "intermediate.dense"])
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=59, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    special = lambda trained: [(word, trained.token_to_id(word)) for word in ["[CLS]", "[SEP]"]]
    tokenizer("bert", pieces, trainer,
              lambda trained: processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special(trained)))


def roberta():
    config = transformers.RobertaConfig(
        vocab_size=53, hidden_size=20, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36,
        max_position_embeddings=24, type_vocab_size=1, num_labels=5, layer_norm_eps=1e-5,
    )
    model = transformers.RobertaForSequenceClassification(config)
    encoder("roberta", model, 13, lambda model, hidden: torch.tanh(model.classifier.dense(hidden[:, 0])), first=2)


FAMILIES = {"llama": llama, "llama-tied": llama_tied, "mistral": mistral, "qwen2": qwen2, "gpt2": gpt2,
            "bert": bert, "roberta": roberta}

if __name__ == "__main__":
    for name in sys.argv[1:] or FAMILIES:
        FAMILIES[name]()
