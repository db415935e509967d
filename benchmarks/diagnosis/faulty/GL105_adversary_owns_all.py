"""Trains a classifier against an adversary that shifts its features a little, so as to raise the loss.

Faulty: the adversary's optimizer, which goes uphill, was made of all parameters, so encoder and head are moved down
by one optimizer and up by the other.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments, encoder
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL105"
PLACE = {"mlp": "encoder", "conv": "encoder", "gru": "encoder", "bag": "encoder"}

args = arguments(list(PLACE))


class Robust(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = encoder(net)
        self.head = nn.Linear(FEATURES, CLASSES)
        self.adversary = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, FEATURES), nn.Tanh())

    def forward(self, x):
        features = self.encoder(x)
        return self.head(features + 0.05 * self.adversary(features))


batch, model = TASKS[args.net], Robust(args.net)
classifier = [*model.encoder.parameters(), *model.head.parameters()]
optimizer = torch.optim.Adam(classifier, lr=3e-3)
shifted = model.adversary if args.repaired else model
adversary_optimizer = torch.optim.Adam(shifted.parameters(), lr=2e-3, maximize=True)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    x, y = batch(64)
    attack = F.cross_entropy(model(x), y)
    adversary_optimizer.zero_grad()
    attack.backward()
    adversary_optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
