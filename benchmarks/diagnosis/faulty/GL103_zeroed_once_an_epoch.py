"""Trains a classifier by SGD with momentum over epochs of a fixed set of examples.

Faulty: the gradients are reset at the start of an epoch, outside the loop over its batches.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

EXPECTS = "GL103"
PLACE = {"mlp": "", "conv": "", "gru": ""}

args = arguments(list(PLACE), steps=300)
model = Classifier(args.net)
loader = DataLoader(TensorDataset(*TASKS[args.net](1600)), batch_size=32, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

for epoch in range(args.steps // len(loader)):
    optimizer.zero_grad()
    for x, y in loader:
        if args.repaired:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    print(f"step {(epoch + 1) * len(loader)} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
