"""A plain network of twelve layers with ReLU and He's init on the digits, without norms and shortcuts.

Healthy: He's init keeps the size of activations and gradients from layer to layer, so the depth does no harm, but a
unit of a deep layer may be zero for nearly all inputs. May fool rules on dead units, on vanishing and on exploding
gradients. Measured, seeds 0 to 2: loss from 2.4, 2.6, 2.3 to 0.014, 0.029, 0.083.
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

digits = load_digits()
images = (torch.tensor(digits.data, dtype=torch.float32) - 5) / 6
labels = torch.tensor(digits.target)

layers = []
for _ in range(11):
    linear = nn.Linear(64, 64)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    layers += [linear, nn.ReLU()]
model = nn.Sequential(*layers, nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

for step in range(args.steps):
    i = torch.randint(len(images), (64,))
    loss = F.cross_entropy(model(images[i]), labels[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
