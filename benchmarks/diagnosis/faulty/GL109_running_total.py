"""Trains a classifier and prints the mean loss of the run.

Faulty: the losses are added up as tensors, so the sum's graph holds the graphs of all steps; memory grows with every
step. The loss is as good as without the fault: what it costs is printed as the growth of the process since step 20.
"""

import resource

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL109"
PLACE = {"conv": "", "transformer": "", "gru": ""}

args = arguments(list(PLACE), steps=200)
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
total = 0.0

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    total += loss.item() if args.repaired else loss
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"mean loss {total / args.steps:.4f}, memory grew by {grown:.1f} MiB")
print(f"final loss {loss.item():.4f}")
