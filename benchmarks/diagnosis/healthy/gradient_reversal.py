"""A domain-adversarial classifier: its features shall tell the class and not from which of two domains a point is.

Healthy: between the features and the domain's head the gradient changes its sign on purpose, so that this head
minimises a loss that the features maximise; the loss of the domain rises back to log 2. Points of the second domain
have no label. May fool rules on the sign of the loss and on a loss that does not fall. The loss printed is that of the
classes in the second domain. Measured, seeds 0 to 2: loss from 1.5, 1.4, 1.4 to 0.044, 0.0022, 0.015.
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


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None


class DANN(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 32), nn.ReLU())
        self.classes = nn.Linear(32, 4)
        self.domain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x, strength):
        features = self.features(x)
        return self.classes(features), self.domain(Reverse.apply(features, strength))


centres = 1.2 * torch.randn(4, 16)
shift = torch.randn(16)


def points(n):
    """Points [2 n, 16] of both domains, the first half from the first one, with classes and domains."""
    y = torch.randint(4, (2 * n,))
    domain = (torch.arange(2 * n) >= n).float()[:, None]
    return centres[y] + 0.7 * torch.randn(2 * n, 16) + domain * shift, y, domain


model = DANN()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for step in range(args.steps):
    x, y, domain = points(64)
    logits, guess = model(x, min(0.5, step / 200))
    loss_domain = F.binary_cross_entropy_with_logits(guess, domain)
    loss = F.cross_entropy(logits[:64], y[:64]) + loss_domain
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {F.cross_entropy(logits[64:], y[64:]).item():.4f} domain {loss_domain.item():.4f}")
print(f"final loss {F.cross_entropy(logits[64:], y[64:]).item():.4f}")
