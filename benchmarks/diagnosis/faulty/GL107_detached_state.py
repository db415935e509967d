"""Trains a recurrent cell to name, after ten steps of noise, the class that it saw at the first step.

Faulty: the state is detached at every time step (meant to be done between batches), so that no gradient goes back in
time and the cell cannot learn what to keep.
"""

import torch
from encoders import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL107"
PLACE = {"gru": "cell", "lstm": "cell", "gated": "cell"}

CLASSES, LENGTH, WIDTH = 4, 10, 48
args = arguments(list(PLACE))


class Gated(nn.Module):
    """A cell of its own kind: the state is kept or replaced, unit by unit."""

    def __init__(self, inputs, width):
        super().__init__()
        self.keep, self.new = nn.Linear(inputs + width, width), nn.Linear(inputs + width, width)

    def forward(self, x, state):
        both = torch.cat([x, state], 1)
        keep = torch.sigmoid(self.keep(both))
        return keep * state + (1 - keep) * torch.tanh(self.new(both))


class Recall(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "gated": Gated}[net](CLASSES, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        state = x.new_zeros(len(x), WIDTH)
        if args.net == "lstm":
            state = state, state
        for now in x.unbind(1):
            if not args.repaired:
                state = tuple(one.detach() for one in state) if args.net == "lstm" else state.detach()
            state = self.cell(now, state)
        return self.head(state[0] if args.net == "lstm" else state)


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
