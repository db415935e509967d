"""Trains a classifier with SGD for the head and Adam for the encoder.

Faulty: only one of the two optimizers is stepped; the encoder gets gradients and stays as it was initialised.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL104"
PLACE = {"mlp": "encoder", "transformer": "encoder", "gru": "encoder"}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
adam = torch.optim.Adam(model.encoder.parameters(), lr=3e-3)
sgd = torch.optim.SGD(model.head.parameters(), lr=0.05, momentum=0.9)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    adam.zero_grad()
    sgd.zero_grad()
    loss.backward()
    if args.repaired:
        adam.step()
    sgd.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
