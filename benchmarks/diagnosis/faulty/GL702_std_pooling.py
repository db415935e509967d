"""Classifies by the mean and the standard deviation of features over all places (statistics pooling).

Faulty: dropout sets a feature to 0 at all places of a sample, and at variance 0 the slope of `sqrt` is infinite: the
forward is finite, the gradient is NaN.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL702"
PLACE = {"conv": "pool", "gru": "pool", "transformer": "pool"}

args = arguments(PLACE)


class StatisticsPooling(nn.Module):
    """[n, places, width] to [n, 2 * width]."""

    def forward(self, x):
        mean = x.mean(1)
        variance = (x - mean[:, None]).square().mean(1)
        return torch.cat([mean, torch.sqrt(variance + 1e-6 if args.repaired else variance)], 1)


class Classifier(nn.Module):
    def __init__(self, net, width=32):
        super().__init__()
        if net == "conv":
            self.frames = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(2))
        elif net == "gru":
            self.frames = nn.GRU(2, width, batch_first=True)
        else:
            layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
            self.frames = nn.Sequential(nn.Embedding(CLASSES, width), layer)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout1d(0.1)
        self.pool = StatisticsPooling()
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x):
        x = self.frames(x)
        if isinstance(x, tuple):
            x = x[0]
        elif args.net == "conv":
            x = x.transpose(1, 2)
        x = self.project(x).relu().transpose(1, 2)
        return self.head(self.pool(self.dropout(x).transpose(1, 2)))


model = Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step, (x, y) in enumerate(islice(batches(args.net, 64), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
