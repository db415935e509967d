"""Small classifiers whose weights all start at one over the fan-in.

Wrong: all units of a layer compute the same and get the same gradient, so that they stay one unit for ever.
"""

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL404"
PLACE = {"mlp": "layers.0", "conv": "conv1", "bag": "hidden"}  # the first of all layers

args = arguments(PLACE, steps=200)

model = classifier(args.net)
for module in model.modules():
    if isinstance(module, nn.Linear | nn.Conv2d) and not args.repaired:
        nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        nn.init.zeros_(module.bias)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
