"""Trains a classifier with dropout, its settings taken over from a TensorFlow 1 script.

Faulty: there 0.9 was the probability to keep; `nn.Dropout(0.9)` drops 90 % of the units.
"""

from itertools import islice

import torch
from parts import arguments, batches, norm_classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL207"
PLACE = {"mlp": "drop", "conv": "drop", "wave": "drop", "resnet": "drop"}
KEEP = 0.9

args = arguments(PLACE)
model = norm_classifier(args.net, norm=nn.Identity, dropout=1 - KEEP if args.repaired else KEEP)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
