"""Compresses inputs to a code of signs (a hash) from which the class is read by a linear layer.

Faulty: `sign` has a gradient of exactly 0, so the encoder stays as it was initialised; the repaired twin passes the
gradient straight through. The reader alone learns, so the loss does fall.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL203"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder"}
BITS = 6

args = arguments(PLACE)


class HashClassifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = classifier(net)
        self.encoder.head = nn.Linear(self.encoder.head.in_features, BITS)
        self.reader = nn.Linear(BITS, CLASSES)

    def forward(self, x):
        soft = torch.tanh(self.encoder(x))
        code = torch.sign(soft)
        if args.repaired:
            code = soft + (code - soft).detach()
        return self.reader(code)


model = HashClassifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
