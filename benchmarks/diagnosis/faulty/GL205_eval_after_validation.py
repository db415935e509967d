"""Trains a classifier with batch norms, and validates it every 25 steps.

Faulty: the validation calls `model.eval()` and nothing calls `model.train()` again, so that from step 25 on the norms
use the statistics of the first steps for ever.
"""

from itertools import islice

import torch
from parts import arguments, batches, norm_classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL205"
PLACE = {"mlp": "norm1", "conv": "norm1", "wave": "norm1"}
NORMS = {"mlp": nn.BatchNorm1d, "conv": nn.BatchNorm2d, "wave": nn.BatchNorm1d}
DEPTHS = {"mlp": 10, "conv": 8, "wave": 8}

args = arguments(PLACE)
model = norm_classifier(args.net, NORMS[args.net], depth=DEPTHS[args.net])
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
stream = batches(args.net)
held_out = next(stream)


def validate():
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(held_out[0]), held_out[1])
    if args.repaired:
        model.train()
    return loss.item()


for step, (x, y) in enumerate(islice(stream, args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 24:
        print(f"step {step} loss {loss.item():.4f} validation {validate():.4f}")
print(f"final loss {loss.item():.4f}")
