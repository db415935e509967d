"""Small classifiers whose last two layers both start at zero, so that the first output is uniform.

Wrong: one zero layer is harmless, but of two each waits for the other: both weights and gradients stay zero.
"""

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL403"
PLACE = {"mlp": "layers.2", "conv": "conv3", "bag": "hidden"}  # and the head after it

args = arguments(PLACE, steps=200)

model = classifier(args.net)
last_hidden = model.get_submodule(PLACE[args.net])
for layer in [model.head] if args.repaired else [last_hidden, model.head]:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
