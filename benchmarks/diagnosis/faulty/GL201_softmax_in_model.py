"""Classifies with a model that ends in a softmax, as it was written for serving.

Faulty: `cross_entropy` takes logits and has a softmax of its own, so the loss stays far from 0 and learning is slow.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL201"
PLACE = {"mlp": "", "conv": "", "transformer": "", "gru": ""}

args = arguments(PLACE)


class Probabilities(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        scores = self.net(x)
        return scores if args.repaired else F.softmax(scores, dim=1)


model = Probabilities(classifier(args.net))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
