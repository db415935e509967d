"""A classifier of the digits with dropout and batch norm that is validated every 20 steps.

Healthy: for the validation the net is in evaluation mode and has no gradients, then it is put back into training mode;
forwards without a backward lie between the steps, and with an input of another size. May fool rules on batch norm in
evaluation mode, on accumulated forwards and on modes that change. Measured, seeds 0 to 2: loss from 2.3, 2.4, 2.4 to
0.071, 0.18, 0.091.
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

digits = load_digits()
order = torch.randperm(len(digits.data))
images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]
train_images, train_labels, val_images, val_labels = images[:1400], labels[:1400], images[1400:], labels[1400:]
model = nn.Sequential(
    nn.Linear(64, 128, bias=False),
    nn.BatchNorm1d(128),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(128, 64, bias=False),
    nn.BatchNorm1d(64),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(64, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)


@torch.no_grad()
def validate():
    model.eval()
    logits = model(val_images)
    model.train()
    return F.cross_entropy(logits, val_labels).item(), (logits.argmax(1) == val_labels).float().mean().item()


for step in range(args.steps):
    i = torch.randint(len(train_images), (64,))
    loss = F.cross_entropy(model(train_images[i]), train_labels[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        val_loss, accuracy = validate()
        print(f"step {step} loss {loss.item():.4f} validation {val_loss:.4f} accuracy {accuracy:.3f}")
print(f"final loss {loss.item():.4f}")
