"""Trains sequence models whose layers have a dropout of their own, turned up against a feared overfit.

Faulty: `dropout=0.85` where the layers have 0.1 by default; almost nothing passes from one layer to the next.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL207"
PLACE = {"transformer": "encoder.layers.0.dropout", "gru": "encoder", "pointnet": "encoder.drop1"}

args = arguments(PLACE)
dropout = 0.1 if args.repaired else 0.85


class PointNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.drop1 = nn.Linear(width, width), nn.Dropout(dropout)
        self.fc2, self.drop2 = nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, x):
        x = self.drop1(self.fc1(x).relu())
        return self.drop2(self.fc2(x).relu())


class SequenceClassifier(nn.Module):
    def __init__(self, net, width=32):
        super().__init__()
        self.embed = nn.Linear(2, width)
        if net == "transformer":
            layer = nn.TransformerEncoderLayer(width, 4, 64, dropout, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
        elif net == "gru":
            self.encoder = nn.GRU(width, width, num_layers=2, dropout=dropout, batch_first=True)
        else:
            self.encoder = PointNet(width)
        self.position = nn.Parameter(0.3 * torch.randn(16, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        states = self.encoder(self.embed(x) + self.position)
        states = states[0] if isinstance(states, tuple) else states
        return self.head(states.mean(1))


model = SequenceClassifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches("gru", 64), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
