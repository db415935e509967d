"""A shared trunk with a head that classifies points and a head that regresses a number, trained by turns.

Healthy: each task has its own loss and its own backward, two in a step with one batch each, and every third step has
data for the first task only, so that the other head gets no gradient there. May fool rules on gradients that are not
reset, on losses that are not averaged and on parameters without a gradient. The loss printed is that of both tasks.
Measured, seeds 0 to 2: loss from 2.3, 2.3, 2.0 to 0.042, 0.037, 0.032.
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


class MultiTask(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.classes = nn.Linear(width, 6)
        self.value = nn.Linear(width, 1)


centres = torch.randn(6, 16)
direction = torch.randn(16, 1) / 4
model = MultiTask()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


def points():
    y = torch.randint(6, (64,))
    return centres[y] + 0.7 * torch.randn(64, 16), y


for step in range(args.steps):
    optimizer.zero_grad()
    x, y = points()
    loss_classes = F.cross_entropy(model.classes(model.trunk(x)), y)
    loss_classes.backward()
    if step % 3 != 2:
        x, _ = points()
        loss_value = F.mse_loss(model.value(model.trunk(x)), torch.sin(x @ direction))
        loss_value.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss_classes.item() + loss_value.item():.4f}")
print(f"final loss {loss_classes.item() + loss_value.item():.4f}")
