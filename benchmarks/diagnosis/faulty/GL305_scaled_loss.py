"""Small classifiers by Adam, whose loss has a weight of 1e-7, left over from a sum of several terms.

Wrong: the gradients lie below the eps in Adam's denominator, so that they are not normalised any more.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL305"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
weight = 1.0 if args.repaired else 1e-7
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y) * weight
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item() / weight:.4f}")
print(f"final loss {loss.item() / weight:.4f}")
