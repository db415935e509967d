"""Trains a classifier on batches of 32 that go through the model two samples at a time.

Faulty: accumulating gradients makes up for the small batch everywhere but in batch norm, which still sees two samples;
the repaired twin has a group norm.
"""

from itertools import islice

import torch
from parts import arguments, batches, norm_classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL206"
PLACE = {"wave": "norm1", "conv": "norm1", "mlp": "norm1"}
NORMS = {"mlp": nn.BatchNorm1d, "conv": nn.BatchNorm2d, "wave": nn.BatchNorm1d}
MICRO = 2

args = arguments(PLACE, steps=100)
norm = (lambda width: nn.GroupNorm(4, width)) if args.repaired else NORMS[args.net]
model = norm_classifier(args.net, norm)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

for step, (x, y) in enumerate(islice(batches(args.net, 32), args.steps)):
    optimizer.zero_grad()
    total = 0.0
    for some, labels in zip(x.split(MICRO), y.split(MICRO), strict=True):
        loss = F.cross_entropy(model(some), labels) * MICRO / len(y)
        loss.backward()
        total += loss.item()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step} loss {total:.4f}")
print(f"final loss {total:.4f}")
