"""Classifies a data set that is shuffled once before the training.

Faulty: the inputs are put into a new order and the labels are not. Only how often each class occurs can be learned.
"""

import torch
from parts import CLASSES, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL502"
PLACE = {"conv": "", "mlp": "", "gru": "", "transformer": ""}

args = arguments(PLACE, steps=250)
x, y = next(batches(args.net, 8192))
kept = torch.rand(len(y)) < (1 + y) / CLASSES  # the last class is eight times as frequent as the first
x, y = x[kept], y[kept]
order = torch.randperm(len(y))
x = x[order]
if args.repaired:
    y = y[order]

model = classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(args.steps):
    rows = torch.arange(96 * step, 96 * (step + 1)) % len(y)
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
