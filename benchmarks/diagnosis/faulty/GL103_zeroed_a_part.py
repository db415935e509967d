"""Trains a classifier by SGD with clipped gradients.

Faulty: `zero_grad` is called on the head alone (the module that the loop was written for), so the encoder's gradients
add up, and the clipping hides how large they become.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL103"
PLACE = {"mlp": "encoder", "conv": "encoder", "gru": "encoder"}

args = arguments(list(PLACE), steps=300)
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    (model if args.repaired else model.head).zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
