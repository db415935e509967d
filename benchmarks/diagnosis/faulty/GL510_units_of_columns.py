"""Predicts a rating from a table whose columns have units of their own: pascals, metres, volts, millimetres, shares.

Faulty: the columns are not standardised, and those in small units are lost beside those in large ones.
"""

from itertools import islice

import torch
from parts import CLASSES, MLP, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL510"
PLACE = {"mlp": "layers.0", "residual": "first", "mixture": "experts.0"}
SCALES = torch.tensor([2e4, 300.0, 1.0, 0.01]).repeat(4)

args = arguments(PLACE)


class ResidualMLP(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.first = nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Mixture(nn.Module):
    """Four experts, weighted by a gate."""

    def __init__(self, width=32):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, width) for _ in range(4))
        self.gate = nn.Linear(16, 4)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        answers = torch.stack([expert(x).relu() for expert in self.experts], dim=1)
        return self.head((self.gate(x).softmax(1)[:, :, None] * answers).sum(1))


model = {"mlp": MLP, "residual": ResidualMLP, "mixture": Mixture}[args.net]()
model.head = nn.Linear(model.head.in_features, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches("mlp"), args.steps)):
    table = x * SCALES
    inputs = table / SCALES if args.repaired else table
    rating = 2 * y / (CLASSES - 1) - 1
    loss = F.mse_loss(model(inputs).squeeze(1), rating)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
