"""SimCLR: representations of two noisy views of a digit that find each other in the batch, by InfoNCE.

Healthy: a view must not find itself, so the diagonal of the similarities is minus infinity; the labels are places in
the batch, the representations are normalised, and the loss keeps a floor since other digits look alike. May fool rules
on non-finite numbers, on labels and on a loss that stands still. Measured, seeds 0 to 2: loss from 5.5, 5.5, 5.5 to
3.0, 3.1, 3.1.
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

images = torch.tensor(load_digits().data, dtype=torch.float32) / 16


class SimCLR(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 32))

    def forward(self, x):
        return F.normalize(self.projection(self.encoder(x)), dim=1)


def view(x):
    return (x + 0.15 * torch.randn_like(x)) * (torch.rand_like(x) > 0.2)


def info_nce(a, b, temperature=0.2):
    z = torch.cat([a, b])
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(a)))


model = SimCLR()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(args.steps):
    x = images[torch.randint(len(images), (128,))]
    loss = info_nce(model(view(x)), model(view(x)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
