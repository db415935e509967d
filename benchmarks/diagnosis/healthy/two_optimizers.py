"""A recommender of films: SGD for the embeddings, whose gradients are sparse, and AdamW for the network above them.

Healthy: each parameter is in one of two optimizers, which step together; the embeddings have no weight decay and a
thousand times the learning rate, since one or two points of a batch share a row. May fool rules on parameters that one
optimizer lacks, on parameters in two optimizers, on learning rates and on zero rows. Measured, seeds 0 to 2: loss from
2.7, 3.0, 2.1 to 0.057, 0.039, 0.030.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)

USERS, FILMS = 100, 80
taste, style = torch.randn(USERS, 3), torch.randn(FILMS, 3)


class Recommender(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.users = nn.Embedding(USERS, width, sparse=True)
        self.films = nn.Embedding(FILMS, width, sparse=True)
        self.net = nn.Sequential(nn.Linear(3 * width, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user, film):
        user, film = self.users(user), self.films(film)
        return self.net(torch.cat([user, film, user * film], 1)).squeeze(1)


model = Recommender()
optimizers = [
    torch.optim.SGD([*model.users.parameters(), *model.films.parameters()], lr=10.0),
    torch.optim.AdamW(model.net.parameters(), lr=1e-2),
]

for step in range(args.steps):
    user, film = torch.randint(USERS, (128,)), torch.randint(FILMS, (128,))
    rating = (taste[user] * style[film]).sum(1) + 0.1 * torch.randn(128)
    loss = F.mse_loss(model(user, film), rating)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
