"""A small regression fitted by L-BFGS, whose step calls a closure several times.

Healthy: one step makes many backwards, each after its own reset. May fool rules that count backwards against steps
or that look for gradients that were not reset. Measured, seeds 0 to 2: loss from 0.51, 0.52, 0.48 to 0.0006,
0.0004, 0.0001.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=30)
args = parser.parse_args()
torch.manual_seed(args.seed)

x = torch.randn(256, 6)
y = torch.sin(x @ torch.randn(6, 1))
model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=10, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss


for step in range(args.steps):
    loss = optimizer.step(closure)
    if step % 5 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
