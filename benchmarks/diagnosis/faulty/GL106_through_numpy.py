"""Trains a classifier whose features are standardised over the batch before the head.

Faulty: the standardising is done in NumPy, and the tensor that comes back has no history: the encoder never learns.
"""

import numpy as np
import torch
from encoders import CLASSES, FEATURES, TASKS, arguments, encoder
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL106"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder"}

args = arguments(list(PLACE))


def standardised(features):
    if args.repaired:
        return (features - features.mean(0)) / (features.std(0) + 1e-2)
    values = features.detach().cpu().numpy()
    values = (values - np.mean(values, axis=0)) / (np.std(values, axis=0) + 1e-2)
    return torch.from_numpy(values)


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = encoder(net)
        self.head = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x):
        return self.head(standardised(self.encoder(x)))


batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
