"""Trains a classifier twice, with two seeds, each time from fresh weights.

Faulty: the optimizer is made once, before the two runs, of a model that neither run trains.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = ("GL101", "GL106")
PLACE = {"mlp": "", "conv": "", "bag": "", "gru": ""}

args = arguments(list(PLACE), steps=300)
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for run in range(2):
    torch.manual_seed(args.seed + 100 * run)
    model = Classifier(args.net)
    if args.repaired:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(args.steps // 2):
        x, y = batch(64)
        loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {run * (args.steps // 2) + step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
