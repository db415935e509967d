"""Trains networks of a few layers.

Faulty: a layer is made inside `forward`, so every call has a new random one, which nothing trains.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments, encoder
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL102"
PLACE = {"mlp": "", "conv": "", "transformer": "", "bag": ""}

args = arguments(list(PLACE))


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = encoder(net)
        self.project = nn.Linear(FEATURES, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        features = self.encoder(x)
        project = self.project if args.repaired else nn.Linear(features.shape[1], 32)
        return self.head(F.relu(project(features)))


batch, model = TASKS[args.net], Classifier(args.net)
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
