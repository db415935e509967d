"""Trains a classifier made of an encoder and a linear head.

Faulty: the head gets detached features (left from a time when the encoder was fixed), so the encoder never learns,
though the optimizer has its weights.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments, encoder
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL106"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder", "bag": "encoder"}

args = arguments(list(PLACE))


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = encoder(net)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        features = self.encoder(x)
        return self.head(features if args.repaired else features.detach())


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
