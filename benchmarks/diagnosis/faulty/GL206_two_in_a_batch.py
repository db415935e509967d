"""Trains a classifier with normalised layers on batches of 2, all that fits into memory.

Faulty: batch norm takes its statistics from two samples, and what a sample becomes depends on its neighbour; the
repaired twin has a group norm on the same batches.
"""

from itertools import islice

import torch
from parts import arguments, batches, norm_classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL206"
PLACE = {"mlp": "norm1", "conv": "norm1", "resnet": "norm1", "wave": "norm1"}
NORMS = {"mlp": nn.BatchNorm1d, "conv": nn.BatchNorm2d, "resnet": nn.BatchNorm2d, "wave": nn.BatchNorm1d}

args = arguments(PLACE, steps=800)
norm = (lambda width: nn.GroupNorm(4, width)) if args.repaired else NORMS[args.net]
model = norm_classifier(args.net, norm)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

recent = []
for step, (x, y) in enumerate(islice(batches(args.net, 2), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    recent = [*recent[-99:], loss.item()]
    if step % 100 == 0:
        print(f"step {step} loss {sum(recent) / len(recent):.4f}")
print(f"final loss {sum(recent) / len(recent):.4f}")
