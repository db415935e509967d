"""Deep classifiers whose weights start as plain `torch.randn`.

Wrong: each layer then multiplies its input by the square root of half its fan-in, about ten times, so that the first
losses are astronomic.
"""

from itertools import pairwise

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL405"
PLACE = {"mlp": "layers.0", "conv": "layers.0", "bag": "layers.0"}  # where the growth begins

args = arguments(PLACE, steps=150)


class Deep(nn.Module):
    def __init__(self, net, depth=6):
        super().__init__()
        width = 24 if net == "conv" else 200
        sizes = [{"mlp": 16, "conv": 1, "bag": width}[net]] + [width] * depth
        self.embed = nn.Embedding(CLASSES, width) if net == "bag" else None
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if n < 2 else 1, padding=1) if net == "conv" else nn.Linear(a, b)
            for n, (a, b) in enumerate(pairwise(sizes))
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        if self.embed:
            x = self.embed(x).mean(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.flatten(2).mean(2) if x.dim() == 4 else x)


model = Deep(args.net)
for layer in model.layers:
    if args.repaired:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        layer.weight.data = torch.randn(layer.weight.shape)
    nn.init.zeros_(layer.bias)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
