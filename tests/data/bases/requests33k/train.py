"""Trains requests33k: a Llama of 33,952 parameters that continues requests to a voice assistant, in llama2.c's format.

Run in this folder with PyTorch 2.x; it writes requests33k.bin and tok320.bin. One core needs about ten minutes.

The vocabulary is byte-pair merges learned from the training part. While training, merges are left out at random
(BPE-dropout), so that the network also knows words as they are spelled, letter by letter.
"""

import collections
import math
import pathlib
import random
import struct

import torch
from torch import nn
from torch.nn import functional

DATA = pathlib.Path(__file__).parent / "../../snips-intents"
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 32, 96, 2, 4, 1, 320, 24
HEAD = DIM // HEADS
BOS, BYTES = 1, 3
STEPS, BATCH, RATE, WARMUP, DROPOUT = 12_000, 128, 4e-3, 200, 0.1


def texts(name):
    lines = (DATA / name).read_text(encoding="utf8").splitlines()[1:]
    return [" " + line.split("\t")[1] for line in lines]


def learn_pieces(corpus):
    """The most frequent adjacent pair becomes a piece, again and again; pieces never cross the start of a word."""
    counts = collections.Counter(" " + word for text in corpus for word in text[1:].split(" "))
    words = {word: [bytes([byte]) for byte in word.encode()] for word in counts}
    pieces = []
    while BYTES + 256 + len(pieces) < VOCAB:
        pairs = collections.Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[word]
        # Ties go to the pair that sorts last, so that a run does not depend on the order of a dictionary.
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        pieces.append(left + right)
        words = {word: merge(parts, left + right) for word, parts in words.items()}
    return pieces


def merge(parts, piece):
    out = []
    for part in parts:
        if out and out[-1] + part == piece:
            out[-1] = piece
        else:
            out.append(part)
    return out


def encode(text, rank, dropout=0.0):
    """As the device does: the adjacent pair with the best score first; with dropout some pairs are passed over."""
    parts = [bytes([byte]) for byte in text.encode()]
    while True:
        candidates = [
            (rank[a + b], i)
            for i, (a, b) in enumerate(zip(parts, parts[1:]))
            if a + b in rank and (dropout == 0 or random.random() >= dropout)
        ]
        if not candidates:
            break
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [BYTES + part[0] if len(part) == 1 else BYTES + 256 + rank[part] for part in parts]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda out, inside: nn.Linear(inside, out, bias=False)
        self.wq, self.wk, self.wv, self.wo = (
            linear(DIM, DIM), linear(KV_HEADS * HEAD, DIM), linear(KV_HEADS * HEAD, DIM), linear(DIM, DIM),
        )
        self.w1, self.w2, self.w3 = linear(HIDDEN, DIM), linear(DIM, HIDDEN), linear(HIDDEN, DIM)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(DIM, 1e-5), nn.RMSNorm(DIM, 1e-5)

    def forward(self, x, rotation):
        batch, rows, _ = x.shape
        h = self.attention_norm(x)
        q = rotate(self.wq(h).view(batch, rows, HEADS, HEAD), rotation)
        k = rotate(self.wk(h).view(batch, rows, KV_HEADS, HEAD), rotation)
        v = self.wv(h).view(batch, rows, KV_HEADS, HEAD)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        repeat = lambda t: t.expand(batch, HEADS, rows, HEAD)
        y = functional.scaled_dot_product_attention(q, repeat(k), repeat(v), is_causal=True)
        x = x + self.wo(y.transpose(1, 2).reshape(batch, rows, DIM))
        h = self.ffn_norm(x)
        return x + self.w2(functional.silu(self.w1(h)) * self.w3(h))


def rotate(x, rotation):
    """Adjacent numbers are a pair, as in llama2.c."""
    cos, sin = rotation
    cos, sin = cos[: x.shape[1], None], sin[: x.shape[1], None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, 1e-5)
        angle = torch.outer(torch.arange(CONTEXT), 10_000.0 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(parameter, std=0.1 / math.sqrt(2 * LAYERS) if deep else 0.1)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        return functional.linear(self.norm(x), self.embedding.weight)


def tensor(sequences):
    """Rows [BOS, text.., BOS], cut to the context; -1 behind the end."""
    rows = [([BOS] + ids + [BOS])[: CONTEXT + 1] for ids in sequences]
    padded = torch.full((len(rows), CONTEXT + 1), -1)
    for row, ids in zip(padded, rows):
        row[: len(ids)] = torch.tensor(ids)
    return padded


def loss_of(model, rows):
    logits = model(rows[:, :-1].clamp(min=0))
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=-1)


def write(model, pieces):
    w = model.state_dict()
    layers = lambda name: [w[f"blocks.{i}.{name}.weight"] for i in range(LAYERS)]
    tensors = [w["embedding.weight"], *layers("attention_norm")]
    for name in ("wq", "wk", "wv", "wo"):
        tensors += layers(name)
    tensors += layers("ffn_norm")
    for name in ("w1", "w2", "w3"):
        tensors += layers(name)
    tensors += [w["norm.weight"], w["cos"], w["sin"]]
    with open("requests33k.bin", "wb") as file:
        file.write(struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT))
        for t in tensors:
            file.write(t.float().contiguous().numpy().astype("<f4").tobytes())
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % byte for byte in range(256)]
    with open(f"tok{VOCAB}.bin", "wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for score, piece in [(0.0, p) for p in special] + [(-float(i), p) for i, p in enumerate(pieces)]:
            file.write(struct.pack("<fi", score, len(piece)) + piece)


def main():
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    train, valid = texts("train.tsv"), texts("valid.tsv")
    pieces = learn_pieces(train)
    rank = {piece: i for i, piece in enumerate(pieces)}
    held_out = tensor([encode(text, rank) for text in valid])
    # Several spellings of every request, drawn once.
    rows = torch.cat([tensor([encode(text, rank, p) for text in train]) for p in (0.0, DROPOUT, DROPOUT, 0.5)])
    model = Model()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(rows):,} rows")
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.95)
    )
    for step in range(STEPS + 1):
        rate = RATE * min(1, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, rows[torch.randint(len(rows), (BATCH,))])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 1000 == 0:
            with torch.no_grad():
                print(f"step {step}: training {loss.item():.4f}, held out {loss_of(model, held_out).item():.4f}", flush=True)
    write(model, pieces)


if __name__ == "__main__":
    main()
