"""A linear probe on a network that is pretrained first, in this script, on other classes of the same points.

Healthy: only the new head has an optimizer. The base is not frozen, so backwards reach it and leave gradients there
that nobody resets; they cost time and do no harm. May fool rules on parameters that no optimizer has and on gradients
that are not reset. Measured, seeds 0 to 2, probe: loss from 1.7, 2.9, 1.8 to 0.023, 0.043, 0.019.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)


class Net(nn.Module):
    def __init__(self, classes, width=64):
        super().__init__()
        self.base = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.base(x))


centres = 1.5 * torch.randn(12, 16)
coarse = torch.arange(12) // 3


def train(model, trained, labels, steps, lr):
    optimizer = torch.optim.Adam(trained.parameters(), lr=lr)
    for step in range(steps):
        y = torch.randint(12, (128,))
        loss = F.cross_entropy(model(centres[y] + torch.randn(128, 16)), labels[y])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


model = Net(12)
train(model, model, torch.arange(12), 200, 2e-3)

print("probe")
model.head = nn.Linear(64, 4)
print(f"final loss {train(model, model.head, coarse, args.steps, 1e-2):.4f}")
