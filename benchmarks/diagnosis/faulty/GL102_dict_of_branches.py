"""Trains a classifier with two branches of different width that read the same input.

Faulty: the branches are kept in a plain dict, by name, and are therefore in no `parameters()`.
"""

import torch
from encoders import CLASSES, TASKS, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL102"
PLACE = {"mlp": "branches", "conv": "branches", "gru": "branches"}

args = arguments(list(PLACE))


class Tokens(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.tokens, self.gru = nn.Embedding(24, width), nn.GRU(width, width, batch_first=True)

    def forward(self, x):
        return self.gru(self.tokens(x))[0][:, -1]


def branch(net, width):
    if net == "mlp":
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    if net == "conv":
        first = nn.Conv2d(1, width // 2, 3), nn.ReLU(), nn.Conv2d(width // 2, width, 3), nn.ReLU()
        return nn.Sequential(*first, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    return Tokens(width)


class TwoBranches(nn.Module):
    def __init__(self, net):
        super().__init__()
        branches = {"narrow": branch(net, 16), "wide": branch(net, 48)}
        self.branches = nn.ModuleDict(branches) if args.repaired else branches
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(torch.cat([one(x) for one in self.branches.values()], dim=1))


batch, model = TASKS[args.net], TwoBranches(args.net)
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
