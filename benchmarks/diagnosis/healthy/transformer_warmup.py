"""A small transformer that reverses sequences, under Adam with a linear warm-up and a cosine decay.

Healthy: for the first tenth of the run the steps are small on purpose, then they grow; the attention learns to look at
one place, so that its maximum is near 1 late in training. May fool rules on steps that are too small, on steps that
grow and on saturated attention. Measured, seeds 0 to 2: loss from 2.7, 2.6, 2.7 to 0.0014, 0.0014, 0.0014.
"""

import argparse
import math

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)

WORDS, LENGTH = 12, 8
WARMUP = max(1, args.steps // 10)


class Reverser(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.position = nn.Parameter(0.5 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, WORDS)

    def forward(self, words):
        return self.head(self.encoder(self.embedding(words) + self.position))


def factor(step):
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (args.steps - WARMUP)))


model = Reverser()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

for step in range(args.steps):
    words = torch.randint(WORDS, (64, LENGTH))
    loss = F.cross_entropy(model(words).flatten(0, 1), words.flip(1).flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
