"""One configuration of `cargo xtask bench-train` on PyTorch with transformers and peft.

Takes the same JSON argument and speaks the same way as the example `bench_train` of the trainer: each line of the input is a
number of steps to take and is answered with their times; at the end of the input comes a line about the whole run. Weights
are random; only the shapes are those of published models.
"""

import json
import os
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

config = json.loads(sys.argv[1])
torch.manual_seed(1)
torch.set_num_threads(int(os.environ.get("RAYON_NUM_THREADS") or os.cpu_count()))
device = torch.device(config["device"])
on_gpu = device.type == "cuda"

if config["family"] == "llama":
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"],
            hidden_size=config["dim"],
            intermediate_size=config["hidden"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            num_key_value_heads=config["kv_heads"],
            max_position_embeddings=config["seq"],
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
else:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config["vocab"],
            n_embd=config["dim"],
            n_inner=config["hidden"],
            n_layer=config["layers"],
            n_head=config["heads"],
            n_positions=config["seq"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )
bf16 = config.get("bf16", False)
if bf16:
    model = model.to(torch.bfloat16)
model = model.to(device)
if config["rank"] > 0:
    rank = config["rank"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
shape = (config["batch"], config["seq"] + 1)
tokens = torch.randint(0, config["vocab"], shape, generator=torch.Generator().manual_seed(1)).to(device)
ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
model.train()


def step():
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # Reading the loss waits for the device, as the trainer does after every step.
    return loss.item()


def reset_peak():
    """Building the model needs more than training it: what counts begins now."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def peak_bytes():
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


first = last = step()
reset_peak()
for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
        start = time.perf_counter()
        last = step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds}), flush=True)
assert last < first, f"expected the loss to fall from {first}, found {last}"
count = sum(parameter.numel() for parameter in trained)
print(json.dumps({"first_loss": first, "last_loss": last, "trained": count, "peak_bytes": peak_bytes()}))
