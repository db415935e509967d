"""A new head on a frozen convolutional base, trained in this script on the digits 0 to 4, that tells 5 to 9 apart.

Healthy: all weights of the base are loaded, do not require grad and are in no optimizer; its batch norms are in
evaluation mode and use the statistics of the first training. May fool rules on frozen random weights, on parameters in
no optimizer, and on batch norm in evaluation mode. Measured, seeds 0 to 2, new head: loss from 1.7, 1.6, 1.7
to 0.064, 0.077, 0.052.
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


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * 16, 5)

    def forward(self, x):
        return self.head(self.base(x))


def train(model, images, labels, steps, lr):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        i = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[i]), labels[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
first = labels < 5

pretrained = Net()
train(pretrained, images[first], labels[first], 80, 2e-3)

model = Net()
model.base.load_state_dict(pretrained.base.state_dict())
model.base.requires_grad_(False)
model.base.eval()
print("new head")
print(f"final loss {train(model, images[~first], labels[~first] - 5, args.steps, 1e-3):.4f}")
