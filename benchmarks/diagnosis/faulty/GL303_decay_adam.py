"""Small classifiers by Adam with a weight decay meant for AdamW.

Wrong: Adam adds 0.1 w to the gradient before it normalises, so the steps follow decay instead of the loss.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL303"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
weight_decay = 0 if args.repaired else 0.1
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=weight_decay)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
