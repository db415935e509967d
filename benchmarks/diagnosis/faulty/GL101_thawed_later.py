"""Moves a classifier from a task of two classes to one of four: first the new head alone, then all weights.

Faulty: the optimizer was made while the encoder was frozen, of the weights that required grad then; the encoder is
thawed, gets gradients from then on and is in no optimizer.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, Classifier, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL101"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder"}

args = arguments(list(PLACE), steps=240)
batch, model = TASKS[args.net], Classifier(args.net)


def train(optimizer, steps, divisor, first=0):
    for step in range(first, first + steps):
        x, y = batch(64)
        loss = F.cross_entropy(model(x), y // divisor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


quarter = args.steps // 4
train(torch.optim.Adam(model.parameters(), lr=3e-3), quarter, divisor=2)

model.head = nn.Linear(FEATURES, CLASSES)
model.encoder.requires_grad_(False)
optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=3e-3)
train(optimizer, quarter, divisor=1, first=quarter)

model.encoder.requires_grad_(True)
if args.repaired:
    optimizer.add_param_group({"params": model.encoder.parameters(), "lr": 3e-3})
print(f"final loss {train(optimizer, 2 * quarter, divisor=1, first=2 * quarter):.4f}")
