"""Classifies; the loss of a batch is the mean over its quarters, collected as numbers in a list.

Faulty: `torch.tensor` with `requires_grad=True` silences the error about a loss without a graph. The new tensor is a
leaf, `backward` ends there and no weight has a gradient.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL203"
PLACE = {"mlp": "", "conv": "", "transformer": "", "gru": ""}

args = arguments(PLACE)
model = classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    losses = [F.cross_entropy(model(a), b) for a, b in zip(x.chunk(4), y.chunk(4), strict=True)]
    if args.repaired:
        loss = torch.stack(losses).mean()
    else:
        loss = torch.tensor(sum(part.item() for part in losses) / len(losses), requires_grad=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
