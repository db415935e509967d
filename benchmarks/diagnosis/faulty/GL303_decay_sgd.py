"""Small classifiers by SGD with the weight decay of somebody's AdamW.

Wrong: decay is a gradient of 0.1 w, which outweighs the loss's, and the weights shrink to nothing.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL303"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
weight_decay = 1e-4 if args.repaired else 0.1
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
