"""Trains a classifier made of an encoder and a linear head.

Faulty: the encoder is frozen, as for fine-tuning, but no trained weights were ever loaded into it.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL108"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder", "bag": "encoder"}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
if not args.repaired:
    for parameter in model.encoder.parameters():
        parameter.requires_grad = False
optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
