"""A compiled step: the model and its loss are one graph of `torch.compile`, by the backend that needs no C++ compiler.

Healthy: autograd sees one opaque node in place of the layers and the loss, and all weights get their gradients. May
fool rules on the nodes before the loss and on paths from the loss to the weights. Measured, seeds 0 to 2: loss from
2.29, 2.30, 2.31 to 0.048, 0.063, 0.079.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=250)
args = parser.parse_args()
torch.manual_seed(args.seed)

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)


@torch.compile(backend="aot_eager")
def loss_of(x, y):
    return F.cross_entropy(model(x), y)


for step in range(args.steps):
    i = torch.randint(len(images), (128,))
    loss = loss_of(images[i], labels[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
