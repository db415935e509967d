"""A regression on inputs and targets in raw units, which the net itself standardises.

Healthy: columns span from thousandths to ten thousands, but the first layer is a batch norm, and the net's last step
turns its output into the target's unit by a stored mean and scale; the loss is taken in standard units. May fool rules
on inputs that are not scaled and on shifted targets. Measured, seeds 0 to 2: loss from 1.1, 0.86, 1.1 to 0.01, 0.037,
0.081.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)

units = 10.0 ** torch.linspace(-3, 4, 8)
offsets = units * 5 * torch.randn(8)
hidden = torch.randn(4000, 8)
inputs = offsets + units * hidden
direction = torch.randn(8, 2) / 8**0.5
targets = 250 + 12 * (torch.sin(hidden @ direction[:, :1]) + hidden @ direction[:, 1:])


class Regressor(nn.Module):
    def __init__(self, mean, scale, width=64):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.net = nn.Sequential(
            nn.BatchNorm1d(8, affine=False), nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.mean + self.scale * self.head(self.net(x))


model = Regressor(targets.mean(), targets.std())
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

for step in range(args.steps):
    i = torch.randint(len(inputs), (128,))
    loss = F.mse_loss(model(inputs[i]), targets[i]) / model.scale**2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
