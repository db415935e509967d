"""Fine-tuning at a low learning rate of a network whose lower half, pretrained in this script, is frozen.

Healthy: the task is close to that of the pretraining (its centres moved), so small steps are enough. May fool rules
on steps that are too small, on frozen parameters and on parameters in no optimizer. Measured, seeds 0 to 2,
fine-tuning: loss from 0.58, 0.48, 0.25 to 0.14, 0.19, 0.076.
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


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.upper = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))

    def forward(self, x):
        return self.upper(self.lower(x))


def train(model, centres, steps, lr):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        y = torch.randint(len(centres), (256,))
        loss = F.cross_entropy(model(centres[y] + torch.randn(256, 16)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


centres = torch.randn(6, 16)
model = Net()
train(model, centres, 200, 2e-3)

model.lower.requires_grad_(False)
print("fine-tuning")
print(f"final loss {train(model, centres + torch.randn(6, 16), args.steps, 1e-4):.4f}")
