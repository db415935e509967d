"""Fine-tuning of a network whose pretrained batch norms stay in evaluation mode on purpose.

Healthy: the statistics come from the pretraining in this script, and are left as they are. May fool rules on batch norm
that is in eval while training, and on frozen parameters. Measured, seeds 0 to 2, fine-tuning: loss from 1.42,
1.53, 1.49 to 0.011, 0.014, 0.035.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(self.body(x))


def train(model, centres, steps, lr):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        y = torch.randint(len(centres), (128,))
        loss = F.cross_entropy(model(centres[y] + torch.randn(128, 16)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


pretrained = Net(8)
train(pretrained, torch.randn(8, 16), 100, 3e-3)

model = Net(4)
model.body.load_state_dict(pretrained.body.state_dict())
for module in model.modules():
    if isinstance(module, nn.BatchNorm1d):
        module.eval().requires_grad_(False)
print("fine-tuning")
print(f"final loss {train(model, torch.randn(4, 16), args.steps, 1e-3):.4f}")
