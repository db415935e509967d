"""Trains a classifier and prints its mean loss on 40 evaluation batches after each 50 steps.

Faulty: the evaluation runs without `no_grad` and adds its losses up as tensors: nothing frees what their graphs hold
until the sum is gone. The loss is as good as without the fault: what it costs is printed as the growth of the process
since step 20.
"""

import resource

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL109"
PLACE = {"mlp": "", "conv": "", "gru": ""}

args = arguments(list(PLACE), steps=200)
batch, model = TASKS[args.net], Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 49:
        with torch.set_grad_enabled(not args.repaired):
            total = sum(F.cross_entropy(model(x), y) for x, y in (batch(64) for _ in range(40)))
        print(f"evaluation {total.item() / 40:.4f}")
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"memory grew by {grown:.1f} MiB")
print(f"final loss {loss.item():.4f}")
