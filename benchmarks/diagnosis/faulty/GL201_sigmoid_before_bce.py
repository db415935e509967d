"""Learns one yes-or-no question a class; the model returns probabilities by a sigmoid.

Faulty: `BCEWithLogitsLoss` has a sigmoid of its own, so no probability leaves [0.5, 0.73] and the loss stays high.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL201"
PLACE = {"gru": "", "mlp": "", "conv": "", "transformer": ""}

args = arguments(PLACE)
parts = [classifier(args.net)]
if not args.repaired:
    parts.append(nn.Sigmoid())
model = nn.Sequential(*parts)
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    answers = F.one_hot(y, CLASSES).float()
    loss = criterion(model(x), answers)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
