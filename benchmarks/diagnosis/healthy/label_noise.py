"""A classifier on ten Gaussian classes where 40 % of the labels are drawn at random.

Healthy: the loss has a floor near 1.44, the entropy of the noise, far from 0, and the model still learns the
classes. May fool rules on a loss that no longer falls. Measured, seeds 0 to 2: loss from 2.32, 2.31, 2.32 to 1.29,
1.47, 1.58.
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

centres = 1.5 * torch.randn(10, 20)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(args.steps):
    y = torch.randint(10, (256,))
    x = centres[y] + torch.randn(256, 20)
    noisy = torch.where(torch.rand(256) < 0.4, torch.randint(10, (256,)), y)
    loss = F.cross_entropy(model(x), noisy)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
