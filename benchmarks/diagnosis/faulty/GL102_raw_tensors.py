"""Trains networks with a linear layer that somebody wrote by hand.

Faulty: the layer's matrix is a tensor that requires grad and not an `nn.Parameter`: it gets gradients, adds them up
for ever and is never moved.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = ("GL102", "GL101")
PLACE = {"mlp": "encoder.0.weight", "transformer": "query.weight", "recurrent": "cell.weight"}

args = arguments(list(PLACE))


class Matrix(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        weight = torch.randn(inputs, outputs) * inputs**-0.5
        self.weight = nn.Parameter(weight) if args.repaired else weight.requires_grad_()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(Matrix(8, 64), nn.ReLU(), Matrix(64, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x))


class Attention(nn.Module):
    """Which token comes first, by one query that looks at all places."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(24, 32), nn.Embedding(8, 32)
        self.query, self.key, self.value = Matrix(32, 32), Matrix(32, 32), Matrix(32, 32)
        self.head = nn.Sequential(nn.Linear(32, FEATURES), nn.ReLU(), nn.Linear(FEATURES, CLASSES))

    def forward(self, x):
        x = self.tokens(x) + self.positions.weight
        x = x + F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.cell = nn.Embedding(24, 32), Matrix(32 + FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        state = torch.zeros(len(x), FEATURES)
        for now in self.tokens(x).unbind(1):
            state = torch.tanh(self.cell(torch.cat([now, state], 1)))
        return self.head(state)


networks = {"mlp": Mlp, "transformer": Attention, "recurrent": Recurrent}
batch, model = TASKS["gru" if args.net == "recurrent" else args.net], networks[args.net]()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
