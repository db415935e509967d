"""Trains a classifier with Adam.

Faulty: nothing resets the gradients, so each step follows the sum of all gradients so far.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL103"
PLACE = {"mlp": "", "conv": "", "transformer": "", "gru": "", "bag": ""}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    if args.repaired:
        optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
