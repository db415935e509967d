"""Trains networks of which one matrix is written by hand.

Faulty: the parameter is reshaped before it is assigned, so the attribute holds a view, not a parameter; the matrix
is in no `parameters()` and keeps its first values. (A product in place of the view would fail at the second backward.)
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL102"
PLACE = {"mlp": "mix", "conv": "kernels", "bag": "table"}

args = arguments(list(PLACE))


def matrix(scale, *shape):
    flat = scale * torch.randn(shape).flatten()
    return nn.Parameter(flat.view(shape)) if args.repaired else nn.Parameter(flat).view(shape)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = matrix(0.35, 8, FEATURES)
        self.bias = nn.Parameter(torch.zeros(FEATURES))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(F.relu(x @ self.mix + self.bias))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 1)
        self.kernels = matrix(0.1, 32, 16, 3, 3)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(F.relu(F.conv2d(self.stem(x), self.kernels)).amax((2, 3)))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = matrix(0.3, 200, FEATURES)
        self.head = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, CLASSES))

    def forward(self, x):
        return self.head(self.table[x].sum(1))


batch, model = TASKS[args.net], {"mlp": Mlp, "conv": Conv, "bag": Bag}[args.net]()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
