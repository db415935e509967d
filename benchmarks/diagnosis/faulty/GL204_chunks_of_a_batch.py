"""Classifies by SGD; a batch of 128 does not fit into memory and goes through the model in eight parts.

Faulty: each part's loss is a mean over its own 16 samples, and their sum, not their mean, is what the step follows.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL204"
PLACE = {"conv": "", "mlp": "", "gru": "", "transformer": ""}
RATES = {"mlp": 0.2, "conv": 0.2, "transformer": 0.2, "gru": 0.5}

args = arguments(PLACE)
model = classifier(args.net)
optimizer = torch.optim.SGD(model.parameters(), lr=RATES[args.net], momentum=0.9)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    optimizer.zero_grad()
    total = 0.0
    for part, labels in zip(x.chunk(8), y.chunk(8), strict=True):
        loss = F.cross_entropy(model(part), labels)
        if args.repaired:
            loss = loss / 8
        loss.backward()
        total += loss.item()
    optimizer.step()
    mean = total if args.repaired else total / 8
    if step % 50 == 0:
        print(f"step {step} loss {mean:.4f}")
print(f"final loss {mean:.4f}")
