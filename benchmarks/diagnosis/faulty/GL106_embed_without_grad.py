"""Trains an encoder so that examples of a class are near the mean of their class in the batch (prototypes).

Faulty: `embed` was written for the evaluation, under `no_grad`, and the training calls it too; only the projection
after it gets gradients.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments, encoder
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL106"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder"}

args = arguments(list(PLACE))


class Prototypes(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = encoder(net)
        self.project = nn.Linear(FEATURES, 16)

    def embed(self, x):
        with torch.set_grad_enabled(args.repaired):
            return self.encoder(x)

    def forward(self, x, y):
        z = self.project(self.embed(x))
        support, query = z[: len(z) // 2], z[len(z) // 2 :]
        members = F.one_hot(y[: len(z) // 2], CLASSES).float()
        means = members.T @ support / members.sum(0).clamp(min=1)[:, None]
        return F.cross_entropy(-torch.cdist(query, means).square(), y[len(z) // 2 :])


batch, model = TASKS[args.net], Prototypes(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(args.steps):
    loss = model(*batch(128))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
