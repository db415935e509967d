"""A small causal transformer on a made-up language, with gradients kept at zero and clipped, as language models do it.

Healthy: `zero_grad(set_to_none=False)` fills the same gradients with zeros in place of dropping them, and clipping to
a norm of 1 shortens the gradients of nearly every step after the first thirty, by up to nearly a half. May fool rules
on gradients that are not reset and on clipping. The language is a random chain whose words have four likely followers
(entropy 1.39). Measured, seeds 0 to 2: loss from 3.5, 3.5, 3.5 to 1.5, 1.5, 1.6.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=250)
args = parser.parse_args()
torch.manual_seed(args.seed)

WORDS, LENGTH = 32, 16
followers = torch.stack([torch.randperm(WORDS)[:4] for _ in range(WORDS)])


def sentences(n):
    words = [torch.randint(WORDS, (n,))]
    for _ in range(LENGTH):
        words.append(followers[words[-1], torch.randint(4, (n,))])
    return torch.stack(words, 1)


class Attention(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.word, self.position = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, words):
        x = self.word(words) + self.position(torch.arange(words.shape[1]))
        return self.head(self.norm(self.blocks(x)))


model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
clipped = 0

for step in range(args.steps):
    words = sentences(16)
    loss = F.cross_entropy(model(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    clipped += norm.item() > 1
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f} clipped {clipped}")
print(f"final loss {loss.item():.4f}")
