"""A trunk with an adapter and a head for each of three tasks, trained task after task in stretches of 20 steps.

Healthy: the parts of the two other tasks get no gradient for 40 steps at a time, and the loss rises at each change of
task until the trunk serves all. May fool rules on idle experts, on parameters without a gradient and on jumps of the
loss. The loss printed is the mean over the tasks. Measured, seeds 0 to 2: loss from 1.6, 1.6, 1.6 to 0.010, 0.012,
0.0094.
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

TASKS, STRETCH = 3, 20


class Experts(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, width), nn.ReLU())
        self.adapters = nn.ModuleList(nn.Sequential(nn.Linear(width, 32), nn.ReLU()) for _ in range(TASKS))
        self.heads = nn.ModuleList(nn.Linear(32, 5) for _ in range(TASKS))

    def forward(self, x, task):
        return self.heads[task](self.adapters[task](self.trunk(x)))


centres = 1.2 * torch.randn(TASKS, 5, 16)
model = Experts()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


def loss_of(task):
    y = torch.randint(5, (128,))
    return F.cross_entropy(model(centres[task, y] + 0.8 * torch.randn(128, 16), task), y)


@torch.no_grad()
def mean_loss():
    return sum(loss_of(task).item() for task in range(TASKS)) / TASKS


for step in range(args.steps):
    if step % 50 == 0:
        print(f"step {step} loss {mean_loss():.4f}")
    loss = loss_of(step // STRETCH % TASKS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"final loss {mean_loss():.4f}")
