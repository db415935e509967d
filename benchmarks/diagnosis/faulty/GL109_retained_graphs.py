"""Trains a classifier with an entropy bonus, each with its own backward, and keeps the losses for a curve.

Faulty: the graphs are retained for the second backward, never freed by it (the last one retains as well), and the list
of losses holds them with all their activations. The loss is as good as without the fault: what it costs is printed as
the growth of the process since step 20.
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
curve = []

for step in range(args.steps):
    x, y = batch(64)
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    bonus = 0.01 * (logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    bonus.backward(retain_graph=not args.repaired)
    optimizer.step()
    curve.append((step, loss.item() if args.repaired else loss))
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"mean of the last losses {sum(one for _, one in curve[-20:]) / 20:.4f}, memory grew by {grown:.1f} MiB")
print(f"final loss {loss.item():.4f}")
