"""Small classifiers by AdamW with a weight decay of 10.

Wrong: decay takes 3 % of every weight in a step, more than the gradient gives back.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL303"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
weight_decay = 0.01 if args.repaired else 10
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=weight_decay)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
