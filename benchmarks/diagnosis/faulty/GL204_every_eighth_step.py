"""Classifies by SGD on batches of 16, stepping after eight of them to train as with batches of 128.

Faulty: the eight gradients add up and are not averaged, so each step is eight times too large.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL204"
PLACE = {"mlp": "", "conv": "", "transformer": "", "gru": ""}
ACCUMULATE = 8
RATES = {"mlp": 0.2, "conv": 0.2, "transformer": 0.2, "gru": 0.5}

args = arguments(PLACE, steps=1200)
model = classifier(args.net)
optimizer = torch.optim.SGD(model.parameters(), lr=RATES[args.net], momentum=0.9)

mean = 0.0
for step, (x, y) in enumerate(islice(batches(args.net, 16), args.steps), start=1):
    loss = F.cross_entropy(model(x), y)
    (loss / ACCUMULATE if args.repaired else loss).backward()
    mean += loss.item() / ACCUMULATE
    if step % ACCUMULATE == 0:
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == ACCUMULATE:
            print(f"step {step} loss {mean:.4f}")
        last, mean = mean, 0.0
print(f"final loss {last:.4f}")
