"""A physics-informed network: the solution of u'' = -4 u on [0, 2] with u(0) = 0 and u'(0) = 2, from these alone.

Healthy: the loss is made of derivatives of the output by the input, so that a forward has two gradient calls inside
and a backward goes through them; the last bias has no part in the equation's derivatives. There is no target. May fool
rules on several backwards a step, on targets and on losses that are not monotone. The loss printed is the mean squared
error against the sine. Measured, seeds 0 to 2: loss from 0.37, 0.74, 0.36 to 0.0001, 0.0001, 0.0002.
"""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)

model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)


def derivative(y, x):
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@torch.no_grad()
def error():
    x = torch.linspace(0, 2, 200)[:, None]
    return (model(x) - torch.sin(2 * x)).square().mean().item()


for step in range(args.steps):
    if step % 50 == 0:
        print(f"step {step} loss {error():.4f}")
    x = (2 * torch.rand(128, 1)).requires_grad_()
    u = model(x)
    equation = derivative(derivative(u, x), x) + 4 * u
    start = torch.zeros(1, 1, requires_grad=True)
    u_start = model(start)
    slope = derivative(u_start, start)
    loss = equation.square().mean() / 16 + u_start.square().mean() + (slope - 2).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"final loss {error():.4f}")
