"""Trains a classifier made of an encoder and a linear head, each of four classes of a synthetic task.

Faulty: the optimizer was made when the model was the encoder alone; the head stays as it was initialised.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL101"
PLACE = {"mlp": "head", "conv": "head", "gru": "head", "bag": "head"}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
trained = model if args.repaired else model.encoder
optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
