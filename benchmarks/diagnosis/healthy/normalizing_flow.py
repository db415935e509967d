"""A normalizing flow (RealNVP) that learns the density of narrow two-dimensional moons.

Healthy: the loss is minus a mean log-density, which is positive at first and well below zero at the end, since a
narrow density exceeds 1. The last layer of each coupling begins at zero, so that the flow begins as the identity. May
fool rules on the sign of the loss and on zero init. Measured, seeds 0 to 2: loss from 2.0, 2.0, 2.0 to -0.66, -0.61,
-0.53.
"""

import argparse
import math

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=250)
args = parser.parse_args()
torch.manual_seed(args.seed)


def moons(n):
    angle = math.pi * torch.rand(n)
    upper = torch.rand(n) < 0.5
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    return 0.5 * (torch.stack([x, y], 1) + 0.05 * torch.randn(n, 2))


class Coupling(nn.Module):
    def __init__(self, kept, width=48):
        super().__init__()
        self.kept = kept
        self.net = nn.Sequential(
            nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        kept, moved = x[:, self.kept, None], x[:, 1 - self.kept, None]
        scale, shift = self.net(kept).split(1, 1)
        scale = 2 * torch.tanh(scale)
        moved = moved * scale.exp() + shift
        return torch.cat([kept, moved] if self.kept == 0 else [moved, kept], 1), scale.squeeze(1)


class Flow(nn.Module):
    def __init__(self, couplings=6):
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(i % 2) for i in range(couplings))

    def log_density(self, x):
        log_volume = 0.0
        for coupling in self.couplings:
            x, scale = coupling(x)
            log_volume = log_volume + scale
        return log_volume - 0.5 * x.square().sum(1) - math.log(2 * math.pi)


model = Flow()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(args.steps):
    loss = -model.log_density(moons(256)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
