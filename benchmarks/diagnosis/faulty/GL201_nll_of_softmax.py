"""Classifies by `nll_loss` on the softmax of the scores; prints the cross entropy.

Faulty: `nll_loss` takes log-probabilities. Of probabilities it makes minus the right class's, which has a small slope
where the model is wrong, so that the hard samples are given up.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL201"
PLACE = {"mlp": "", "gru": "", "conv": ""}

args = arguments(PLACE)
model = nn.Sequential(classifier(args.net), nn.LogSoftmax(1) if args.repaired else nn.Softmax(1))
criterion = nn.NLLLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    output = model(x)
    loss = criterion(output, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        entropy = F.nll_loss(output if args.repaired else output.log(), y)
    if step % 50 == 0:
        print(f"step {step} loss {entropy.item():.4f}")
print(f"final loss {entropy.item():.4f}")
