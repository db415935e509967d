"""A network with layer norms under AdamW with a weight decay of 0.1, on labels of which one in five is random.

Healthy: the noise keeps the gradients alive while the decay pulls on weights whose length does not matter before a
norm, so that their norms settle where decay and updates balance. May fool rules on weight decay that is too large, on
weights that do not grow and on a loss that stands still. Measured, seeds 0 to 2: loss from 2.1, 2.2, 2.2 to 0.87,
0.72, 0.71.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)

centres = torch.randn(8, 16)
model = nn.Sequential(
    nn.Linear(16, 64, bias=False),
    nn.LayerNorm(64),
    nn.GELU(),
    nn.Linear(64, 64, bias=False),
    nn.LayerNorm(64),
    nn.GELU(),
    nn.Linear(64, 8),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

for step in range(args.steps):
    y = torch.randint(8, (128,))
    labels = torch.where(torch.rand(128) < 0.2, torch.randint(8, (128,)), y)
    loss = F.cross_entropy(model(centres[y] + 0.7 * torch.randn(128, 16)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f} norm {model[3].weight.norm().item():.3f}")
print(f"final loss {loss.item():.4f}")
