"""Trains a classifier with one optimizer for the encoder and one for the head.

Faulty: before the backward the head's gradients are reset twice and the encoder's never.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL103"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder"}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
encoder_optimizer = torch.optim.Adam(model.encoder.parameters(), lr=2e-3)
head_optimizer = torch.optim.Adam(model.head.parameters(), lr=5e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    head_optimizer.zero_grad()
    (encoder_optimizer if args.repaired else head_optimizer).zero_grad()
    loss.backward()
    encoder_optimizer.step()
    head_optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
