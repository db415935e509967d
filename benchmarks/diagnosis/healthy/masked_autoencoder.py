"""A masked autoencoder of the digits: from a fifth of the pixels to all of them.

Healthy: dropout hides four fifths of the input on purpose, and of the input only; the loss keeps a floor since hidden
pixels cannot be known for sure. May fool rules on dropout that is too strong, on targets in the input and on a loss
that stands still. The mean image has a loss of 0.073. Measured, seeds 0 to 2: loss from 0.24, 0.24, 0.24 to 0.055,
0.055, 0.053.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)

images = torch.tensor(load_digits().data, dtype=torch.float32) / 16


class MaskedAutoencoder(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.hide = nn.Dropout(0.8)
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 32))
        self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, x):
        return self.decoder(self.encoder(self.hide(x)))


model = MaskedAutoencoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for step in range(args.steps):
    x = images[torch.randint(len(images), (256,))]
    loss = F.mse_loss(model(x), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
