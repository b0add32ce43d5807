"""Compares adapters with the PEFT library, both ways. Run by the test `peft_library`, see README.md.

    python check.py FOLDER

FOLDER has a folder for each case with

* case.json           base: a folder of transformers; options: arguments of LoraConfig
* ours                a PEFT folder that Rankpatch has written
* ours.safetensors    ids.N, int32, and logits.N, float32, that Rankpatch computes with it

The folder must load, adapt just the modules that LoraConfig names, and give the same logits. Then the library makes an adapter of its own,
all of it random, and writes it to theirs, with its logits for the same ids in theirs.safetensors.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-4


def load(base):
    name = json.loads((pathlib.Path(base) / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(base).eval()


def keys(folder):
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def logits(model, tensors):
    rows = sum(name.startswith("ids.") for name in tensors)
    found = [model(tensors[f"ids.{n}"].long()[None]).logits for n in range(rows)]
    return [values.reshape(-1, values.shape[-1]) for values in found]


@torch.no_grad()
def check(case):
    about = json.loads((case / "case.json").read_text())
    ours = load_file(case / "ours.safetensors")
    model = peft.PeftModel.from_pretrained(load(about["base"]), case / "ours").eval()
    found = logits(model, ours)
    worst = max((values - ours[f"logits.{n}"]).abs().max().item() for n, values in enumerate(found))
    plain = logits(load(about["base"]), ours)
    change = max((values - other).abs().max().item() for values, other in zip(found, plain))
    print(f"{case.name}: written here, read there: logits differ by {worst:.1e}, the adapter changes them by {change:.1e}")
    assert worst < TOLERANCE < 100 * TOLERANCE < change, (worst, change)

    theirs = peft.get_peft_model(load(about["base"]), peft.LoraConfig(**about["options"]))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sorted(theirs.named_parameters()):
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.eval().save_pretrained(case / "theirs")
    ours_keys, their_keys = keys(case / "ours"), keys(case / "theirs")
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
