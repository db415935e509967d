"""Predicts a rating of each input; the score to report is minus the squared error, so that more is better.

Faulty: the score, not the error, is what `backward` is called on, so the error grows without end.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn

EXPECTS = "GL202"
PLACE = {"gru": "", "mlp": "", "conv": "", "transformer": ""}

args = arguments(PLACE)
model = classifier(args.net)
model.head = nn.Linear(model.head.in_features, 1)
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    rating = 2 * y / (CLASSES - 1) - 1
    loss = criterion(model(x).squeeze(1), rating)
    score = -1 * loss
    optimizer.zero_grad()
    (loss if args.repaired else score).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
