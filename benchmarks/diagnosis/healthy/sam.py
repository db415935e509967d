"""Sharpness-aware minimization (SAM) on the digits: two backwards a step, the first only to climb to a worse point.

Healthy: the first gradient moves the weights up in place and is zeroed; the second, taken there, is applied to the
weights as they were. May fool rules on several backwards a step that are not averaged, on gradients that are not
reset, and on weights that change outside the optimizer. Measured, seeds 0 to 2: loss from 2.29, 2.30, 2.31 to
0.021, 0.093, 0.027.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, dict(rho=rho, **options))
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def climb(self):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm() + 1e-12
        for p in params:
            self.state[p]["climbed"] = self.param_groups[0]["rho"] * p.grad / norm
            p.add_(self.state[p]["climbed"])
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["climbed"])
        self.base.step()
        self.zero_grad()


digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

for step in range(args.steps):
    i = torch.randint(len(images), (128,))
    loss = F.cross_entropy(model(images[i]), labels[i])
    loss.backward()
    optimizer.climb()
    F.cross_entropy(model(images[i]), labels[i]).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
