"""A small vision transformer on the digits under Adam at its full learning rate from the first step on.

Healthy: norms come before the attention and the layers, and the learning rate is moderate, so no warm-up is needed;
Adam's first steps have nearly the size of the learning rate in every weight and are the largest of the run. May fool
rules on missing warm-up and on steps that are too large early on. Measured, seeds 0 to 2: loss from 2.5, 2.5, 2.4 to
0.25, 0.21, 0.21.
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


class ViT(nn.Module):
    def __init__(self, width=32, patches=16):
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(patches, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(x).mean(1))


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
model = ViT()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    i = torch.randint(len(images), (64,))
    loss = F.cross_entropy(model(images[i]), labels[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
