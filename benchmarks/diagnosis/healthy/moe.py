"""A top-1 mixture of four experts with a load-balancing loss, on a piecewise regression.

Healthy: a token reaches one expert only, so an expert's gradient is made from a part of the batch, and the balancing
loss keeps all four in use. May fool rules on idle experts and sparse gradients. Of the loss, 0.3 is the balancing at
its best. Measured, seeds 0 to 2: loss from 3.5, 3.0, 4.7 to 0.32, 0.31, 0.33.
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


class MixtureOfExperts(nn.Module):
    def __init__(self, width=8, experts=4):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width)) for _ in range(experts)
        )

    def forward(self, x):
        probability = self.router(x).softmax(1)
        gate, chosen = probability.max(1)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().squeeze(1)
            if len(rows):
                output = output.index_add(0, rows, gate[rows, None] * expert(x[rows]))
        share = F.one_hot(chosen, len(self.experts)).float().mean(0)
        return output, len(self.experts) * (share * probability.mean(0)).sum()


centres = 2 * torch.randn(4, 8)
maps = torch.randn(4, 8, 8) / 8**0.5
model = MixtureOfExperts()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    group = torch.randint(4, (256,))
    x = centres[group] + 0.5 * torch.randn(256, 8)
    y = torch.einsum("bi,bij->bj", x, maps[group])
    output, balance = model(x)
    loss = F.mse_loss(output, y) + 0.3 * balance
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
