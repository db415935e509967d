"""Predicts a rating from 0 to 7, which is a whole number.

Faulty: the prediction is rounded before the loss. `round` has a graph but a gradient of exactly 0, so no weight moves.
"""

from itertools import islice

import torch
from parts import arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL203"
PLACE = {"gru": "", "mlp": "", "conv": "", "transformer": ""}

args = arguments(PLACE)


class Rating(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.body = classifier(net)
        self.body.head = nn.Linear(self.body.head.in_features, 1)

    def forward(self, x):
        rating = 3.5 + 3.5 * torch.tanh(self.body(x)).squeeze(1)
        if self.training and args.repaired:
            return rating
        return rating.round()


model = Rating(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step, (x, y) in enumerate(islice(batches(args.net), args.steps)):
    loss = F.mse_loss(model(x), y.float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
