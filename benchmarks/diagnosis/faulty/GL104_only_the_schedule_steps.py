"""Trains a classifier with Adam and a learning rate that falls along a cosine.

Faulty: the loop calls the scheduler's `step` and not the optimizer's, so the weights never move.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL104"
PLACE = {"mlp": "", "conv": "", "gru": ""}

args = arguments(list(PLACE), steps=250)
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    if args.repaired:
        optimizer.step()
    scheduler.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
