"""Classifies by log-probabilities and their negative log-likelihood.

Faulty: `nll_loss` already negates, and the minus of the formula is written once more: the likelihood is minimised.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL202"
PLACE = {"mlp": "", "transformer": "", "gru": "", "conv": ""}

args = arguments(PLACE)
model = classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    log_probabilities = F.log_softmax(model(x), dim=1)
    nll = F.nll_loss(log_probabilities, y)
    loss = nll if args.repaired else -nll
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
