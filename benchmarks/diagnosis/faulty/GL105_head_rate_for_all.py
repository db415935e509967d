"""Trains a classifier with Adam for the encoder and SGD with a high learning rate for the linear head.

Faulty: the head's optimizer was made of all parameters, so the encoder is moved by both.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL105"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder"}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
adam = torch.optim.Adam(model.encoder.parameters(), lr=3e-3)
sgd = torch.optim.SGD((model.head if args.repaired else model).parameters(), lr=0.3, momentum=0.9)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    model.zero_grad()
    loss.backward()
    adam.step()
    sgd.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
