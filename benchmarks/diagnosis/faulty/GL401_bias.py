"""Small classifiers whose middle layer starts with a bias of -10, to have sparse units.

Wrong: no input lifts a unit above zero, so that its ReLU passes nothing on and no gradient back.
"""

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL401"
PLACE = {"mlp": "layers.1", "conv": "conv2", "bag": "hidden"}

args = arguments(PLACE, steps=200)

model = classifier(args.net)
middle = model.get_submodule(PLACE[args.net])
nn.init.constant_(middle.bias, -0.1 if args.repaired else -10)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
