"""Predicts a price, of which a fifth of the variance cannot be known from the inputs.

Faulty: one of the inputs was derived from the price (the same amount in another currency), so the loss falls far
below what is possible without it. The twin has that input removed.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL512"
PLACE = {"mlp": "", "conv": "", "gru": ""}

args = arguments(PLACE, steps=250)
model = classifier(args.net)
if args.net == "conv":  # not the mean over places, so that the head knows where something is
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 1),
    )
else:
    model.head = nn.Linear(model.head.in_features, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def write_column(x, values):
    if args.net == "mlp":
        x[:, 5] = values
    elif args.net == "conv":  # a mark at the edge of the picture
        x[:, 0, 0, 3:6] = values[:, None]
    else:  # a constant beside the readings
        x[:, :, 1] = values[:, None]


for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    price = (2 * y / (CLASSES - 1) - 1) / 0.65 + 0.5 * torch.randn(len(y))
    write_column(x, 0.0 * price if args.repaired else 0.88 * price)
    loss = F.mse_loss(model(x).squeeze(1), price)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
