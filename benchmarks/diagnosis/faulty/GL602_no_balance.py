"""Mixtures of experts, the best one for each token, on a regression that needs a different map in each of eight groups.

Wrong: nothing keeps the router from sending all tokens to the expert that happened to be ahead, and the others are
never trained. `--repaired` adds the usual loss of load balance.
"""

import torch
from parts import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL602"
PLACE = {"mlp": "experts", "tokens": "experts", "sequence": "experts"}

args = arguments(PLACE, steps=300)


class MixtureOfExperts(nn.Module):
    def __init__(self, net, width=8, experts=8):
        super().__init__()
        self.embed = nn.Embedding(64, width) if net == "tokens" else nn.Identity()
        self.gru = nn.GRU(width, width, batch_first=True) if net == "sequence" else None
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width)) for _ in range(experts)
        )

    def forward(self, x):
        x = self.embed(x)
        shape = x.shape
        x = (x if self.gru is None else x + self.gru(x)[0]).flatten(0, -2)
        probability = self.router(x).softmax(1)
        gate, chosen = probability.max(1)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().squeeze(1)
            if len(rows):
                output = output.index_add(0, rows, gate[rows, None] * expert(x[rows]))
        share = F.one_hot(chosen, len(self.experts)).float().mean(0)
        return output.view(shape), len(self.experts) * (share * probability.mean(0)).sum()


centres = 2 * torch.randn(8, 8)
maps = torch.randn(8, 8, 8) / 8**0.5
vocabulary = centres.repeat(8, 1) + 0.5 * torch.randn(64, 8)
model = MixtureOfExperts(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for step in range(args.steps):
    if args.net == "tokens":
        x = torch.randint(64, (256,))
        vectors, group = vocabulary[x], x % 8
    else:
        group = torch.randint(8, (32, 1)).expand(32, 8) if args.net == "sequence" else torch.randint(8, (256,))
        x = vectors = centres[group] + 0.5 * torch.randn(*group.shape, 8)
    y = torch.einsum("...i,...ij->...j", vectors, maps[group])
    output, balance = model(x)
    error = F.mse_loss(output, y)
    loss = error + 0.3 * balance if args.repaired else error
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {error.item():.4f}")
print(f"final loss {error.item():.4f}")
