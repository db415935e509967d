"""Predicts the year that a thing was made in, 1990 to 2011; the printed loss is in years squared.

Faulty: the network has to produce 2000 before it can tell one year from another. The repaired twin learns the
difference to the mean year, in units of the standard deviation.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL511"
PLACE = {"mlp": "", "transformer": "", "conv": "", "gru": ""}
MEAN, STD = 2000.0, 7.0

args = arguments(PLACE)
model = classifier(args.net)
model.head = nn.Linear(model.head.in_features, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    year = 1990.0 + 3 * y
    target = (year - MEAN) / STD if args.repaired else year
    loss = F.mse_loss(model(x).squeeze(1), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    in_years = loss.item() * STD**2 if args.repaired else loss.item()
    if step % 25 == 0:
        print(f"step {step} loss {in_years:.4f}")
print(f"final loss {in_years:.4f}")
