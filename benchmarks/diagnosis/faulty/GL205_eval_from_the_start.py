"""Trains a classifier with batch norms, after printing the shape of its output for one batch.

Faulty: the model is put into evaluation mode for that print and stays in it, so the norms neither measure nor learn
any statistics: they pass their inputs on, as if there were none.
"""

from itertools import islice

import torch
from parts import arguments, batches, norm_classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL205"
PLACE = {"resnet": "norm1", "mlp": "norm1", "wave": "norm1", "conv": "norm1"}
NORMS = {"mlp": nn.BatchNorm1d, "conv": nn.BatchNorm2d, "resnet": nn.BatchNorm2d, "wave": nn.BatchNorm1d}
DEPTHS = {"mlp": 10, "conv": 8, "resnet": 3, "wave": 8}

args = arguments(PLACE)
stream = batches(args.net)
model = norm_classifier(args.net, NORMS[args.net], depth=DEPTHS[args.net]).eval()
with torch.no_grad():
    print(f"{args.net}: output {tuple(model(next(stream)[0]).shape)}")
if args.repaired:
    model.train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

for step, (x, y) in enumerate(islice(stream, args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
