"""Trains a classifier and keeps its losses for a curve.

Faulty: the list keeps the losses themselves, and with each its graph; memory grows with every step. The loss is as
good as without the fault: what it costs is printed as the growth of the process since step 20.
"""

import resource

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL109"
PLACE = {"conv": "", "transformer": "", "gru": ""}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
losses = []

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item() if args.repaired else loss)
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"mean of the last losses {sum(losses[-20:]) / 20:.4f}, memory grew by {(after - before) / 1024:.1f} MiB")
print(f"final loss {loss.item():.4f}")
