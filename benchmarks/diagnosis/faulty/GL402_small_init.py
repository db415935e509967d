"""Twelve layers of tanh, initialised with a standard deviation of 0.02 as in GPT.

Wrong: without norms or residual sums every layer divides the signal and its gradient by six; the first get nothing.
"""

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL402"
PLACE = {"mlp": "layers.0", "conv": "layers.0", "bag": "layers.0"}

args = arguments(PLACE, steps=200)


class Deep(nn.Module):
    def __init__(self, net, width=32, depth=12):
        super().__init__()
        kernel = {"mlp": 0, "conv": 3, "bag": 0}[net]
        inputs = {"mlp": 16, "conv": 1, "bag": width}[net]
        self.embed = nn.Embedding(CLASSES, width) if net == "bag" else None
        self.layers = nn.ModuleList(
            nn.Conv2d(i, width, kernel, stride=1 + (n in (0, 1)), padding=1) if kernel else nn.Linear(i, width)
            for n, i in enumerate([inputs] + [width] * (depth - 1))
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        if self.embed:
            x = self.embed(x).sum(1)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x.flatten(2).mean(2) if x.dim() == 4 else x)


model = Deep(args.net)
for layer in model.layers:
    if args.repaired:
        nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
    else:
        nn.init.normal_(layer.weight, std=0.02)
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
