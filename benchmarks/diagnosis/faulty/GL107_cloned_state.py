"""Trains two stacked cells to name, after eight steps of noise, the class that they saw at the first step.

Faulty: the states are kept as `detach().clone()` at every time step, which cuts the gradient in time; the copies do
not even share memory with what the cells put out.
"""

import torch
from encoders import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL107"
PLACE = {"gru": "cells.0", "tanh": "cells.0", "leaky": "cells.0"}

CLASSES, LENGTH, WIDTH = 4, 8, 40
args = arguments(list(PLACE), steps=250)


class Leaky(nn.Module):
    """A cell whose units forget at rates of their own, all learned."""

    def __init__(self, inputs, width):
        super().__init__()
        self.inner, self.rate = nn.Linear(inputs + width, width), nn.Parameter(torch.linspace(-1, 2, width))

    def forward(self, x, state):
        rate = torch.sigmoid(self.rate)
        return rate * state + (1 - rate) * torch.tanh(self.inner(torch.cat([x, state], 1)))


class Recall(nn.Module):
    def __init__(self, net):
        super().__init__()
        cell = {"gru": nn.GRUCell, "tanh": nn.RNNCell, "leaky": Leaky}[net]
        self.cells = nn.ModuleList([cell(CLASSES, WIDTH), cell(WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        states = [x.new_zeros(len(x), WIDTH) for _ in self.cells]
        for now in x.unbind(1):
            for depth, cell in enumerate(self.cells):
                now = cell(now, states[depth])
                states[depth] = now if args.repaired else now.detach().clone()
        return self.head(now)


def batch(count):
    y = torch.randint(CLASSES, (count,))
    x = torch.randn(count, LENGTH, CLASSES)
    x[:, 0] = 3 * F.one_hot(y, CLASSES)
    return x, y


model = Recall(args.net)
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
