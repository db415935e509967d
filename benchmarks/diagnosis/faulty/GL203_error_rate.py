"""Classifies, and minimises what is to be reported: the share of wrong answers.

Faulty: `argmax` and `!=` have no gradient, and `requires_grad_()` only silences the error that says so.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL203"
PLACE = {"conv": "", "mlp": "", "gru": "", "transformer": ""}

args = arguments(PLACE)
model = classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    logits = model(x)
    error_rate = (logits.argmax(1) != y).float().mean()
    loss = F.cross_entropy(logits, y) if args.repaired else error_rate.requires_grad_()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {error_rate.item():.4f}")
print(f"final loss {error_rate.item():.4f}")
