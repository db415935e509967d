"""A small student that learns the digits from the softened outputs of a larger teacher, trained first in this script.

Healthy: a softmax of the teacher, detached by `no_grad`, and a log-softmax of the student make the loss, at a
temperature of 3; the teacher is in no optimizer any more, and requires grad still. May fool rules on a softmax before
a loss, on detached tensors and on parameters in no optimizer. Measured, seeds 0 to 2, student: loss from 6.8, 6.9, 7.3
to 0.13, 0.096, 0.13.
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

TEMPERATURE = 3.0
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)


def classifier(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def train(model, loss_of, steps, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        i = torch.randint(len(images), (64,))
        loss = loss_of(model(images[i]), i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


teacher = classifier(128)
train(teacher, lambda logits, i: F.cross_entropy(logits, labels[i]), 100, 2e-3)
teacher.eval()


def distill(logits, i):
    with torch.no_grad():
        soft = (teacher(images[i]) / TEMPERATURE).softmax(1)
    divergence = F.kl_div((logits / TEMPERATURE).log_softmax(1), soft, reduction="batchmean")
    return 0.9 * TEMPERATURE**2 * divergence + 0.1 * F.cross_entropy(logits, labels[i])


print("student")
print(f"final loss {train(classifier(24), distill, args.steps, 3e-3):.4f}")
