"""Regressions on sensors of very different scales, by SGD with a momentum of 0.99.

Wrong: with so much momentum the weights swing past the minimum for hundreds of steps; 0.9 settles.
"""

import torch
from parts import arguments
from torch import nn
from torch.nn import functional as F

NETS = ("linear", "mlp", "conv")
EXPECTS = "GL306"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=300)


def regressor(net):
    if net == "linear":
        return nn.Linear(20, 1)
    if net == "mlp":
        return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 16, 5), nn.Tanh(), nn.Conv1d(16, 16, 5), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(192, 1)),
    )


scales = torch.logspace(0.3, -1, 20)
truth = torch.randn(20) / scales.sqrt()
model = regressor(args.net)
momentum = 0.9 if args.repaired else 0.99
lr = {"linear": 0.05, "mlp": 0.02, "conv": 0.01}[args.net]
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)

for step in range(args.steps):
    x = torch.randn(128, 20) * scales
    y = (x @ truth)[:, None] + 0.1 * torch.randn(128, 1)
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
