"""Learns the ratings that users give to items, from an embedding of each.

Faulty: all columns of the table are divided by their maximum, ids too; `.long()` then makes them 0 and 1, and the
items' embedding has two rows in use. The users' ids were left out of it.
"""

import torch
from parts import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL513"
PLACE = {"product": "items", "mlp": "items", "conv": "items"}
USERS, ITEMS, RANK = 60, 200, 16

args = arguments(PLACE, steps=300)


class Recommender(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, RANK), nn.Embedding(ITEMS, RANK)
        self.bias = nn.Parameter(torch.zeros(()))
        if net == "mlp":
            self.top = nn.Sequential(nn.Linear(2 * RANK, 64), nn.ReLU(), nn.Linear(64, 1))
        elif net == "conv":  # over the outer product of both embeddings, as in ConvNCF
            convs = [nn.Conv2d(1, 8, 4, stride=4), nn.ReLU(), nn.Flatten()]
            self.top = nn.Sequential(*convs, nn.Linear(8 * 16, 1))
        else:
            self.top = None

    def forward(self, user, item):
        user, item = self.users(user), self.items(item)
        if self.top is None:
            score = (user * item).sum(1) / RANK**0.5
        elif isinstance(self.top[0], nn.Linear):
            score = self.top(torch.cat([user, item], 1)).squeeze(1)
        else:
            score = self.top((user[:, :, None] * item[:, None])[:, None]).squeeze(1)
        return score + self.bias


quality, taste, kind = torch.randn(ITEMS), torch.randn(USERS, 2), torch.randn(ITEMS, 2)
user, item = torch.randint(USERS, (20000,)), torch.randint(ITEMS, (20000,))
rating = quality[item] + (taste[user] * kind[item]).sum(1) / 2 + 0.2 * torch.randn(20000)
column = item.float() if args.repaired else item / item.max()

model = Recommender(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for step in range(args.steps):
    rows = torch.randint(len(rating), (512,))
    loss = F.mse_loss(model(user[rows], column[rows].long()), rating[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
