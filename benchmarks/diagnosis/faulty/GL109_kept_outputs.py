"""Trains a classifier and keeps its outputs to print the accuracy over the run.

Faulty: the outputs are kept with their graphs, though the losses are let go; memory grows with every step. The loss is
as good as without the fault: what it costs is printed as the growth of the process since step 20.
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
outputs, labels = [], []

for step in range(args.steps):
    x, y = batch(64)
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    outputs.append(logits.detach() if args.repaired else logits)
    labels.append(y)
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
right = (torch.cat(outputs).argmax(1) == torch.cat(labels)).float().mean()
print(f"accuracy {right:.3f}, memory grew by {grown:.1f} MiB")
graphs = sum(torch.is_tensor(one) and one.grad_fn is not None for one in outputs)
print(f"{graphs} outputs hold a graph")
print(f"final loss {loss.item():.4f}")
