"""Trains a regression of a smooth function on points, waves and grids.

Faulty: `optimizer.step` is named and not called.
"""

import torch
from encoders import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL104"
PLACE = {"mlp": "", "conv1d": "", "conv2d": ""}

args = arguments(list(PLACE))
shape = {"mlp": (6,), "conv1d": (2, 16), "conv2d": (1, 8, 8)}[args.net]
if args.net == "mlp":
    layers = nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()
elif args.net == "conv1d":
    layers = nn.Conv1d(2, 32, 5, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(192, 64), nn.GELU()
else:
    layers = nn.Conv2d(1, 16, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(144, 64), nn.GELU()
model = nn.Sequential(*layers, nn.Linear(64, 1))
direction = F.normalize(torch.randn(shape).flatten(), dim=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x = torch.randn(128, *shape)
    target = torch.sin(x.flatten(1) @ direction)[:, None]
    loss = F.mse_loss(model(x), target)
    optimizer.zero_grad()
    loss.backward()
    if args.repaired:
        optimizer.step()
    else:
        optimizer.step  # noqa: B018 (the fault)
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
