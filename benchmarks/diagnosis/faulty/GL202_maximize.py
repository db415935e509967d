"""Classifies with an optimizer line that was copied from a script that maximises a return.

Faulty: `maximize=True` climbs the cross entropy.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL202"
PLACE = {"conv": "", "mlp": "", "gru": "", "transformer": ""}

args = arguments(PLACE)
model = classifier(args.net)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, maximize=not args.repaired)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
