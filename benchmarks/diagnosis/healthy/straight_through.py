"""An autoencoder with a rounded code, trained by the straight-through estimator.

Healthy: `round` has a zero gradient, but the detached difference passes the gradient of the code straight through.
May fool rules on Round nodes, on detached tensors and on a target that is the input. Measured, seeds 0 to 2: loss
from 1.10, 1.06, 1.00 to 0.029, 0.030, 0.023.
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


class RoundedCode(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x):
        code = 3 * torch.tanh(self.encoder(x))
        code = code + (code.round() - code).detach()
        return self.decoder(code)


mixing = torch.randn(4, 16) / 2
model = RoundedCode()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(args.steps):
    x = torch.randn(128, 4) @ mixing
    loss = F.mse_loss(model(x), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
