"""Trains a cell that reads frames of 6 × 6 to say in which quarter a spot was in the first frame.

Faulty: the state is detached before each frame, "to save memory", so the cell cannot learn to keep what it saw.
"""

import torch
from encoders import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL107"
PLACE = {"conv": "cell", "dense": "cell", "attention": "cell"}

LENGTH, SIDE, CHANNELS = 8, 6, 12
args = arguments(list(PLACE), steps=250)


class ConvCell(nn.Module):
    """A gated cell whose state is an image."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Conv2d(1 + CHANNELS, 2 * CHANNELS, 3, padding=1)

    def forward(self, frame, state):
        keep, new = self.gates(torch.cat([frame, state], 1)).chunk(2, 1)
        keep = torch.sigmoid(keep)
        return keep * state + (1 - keep) * torch.tanh(new)


class DenseCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(SIDE * SIDE, CHANNELS * SIDE * SIDE // 6)

    def forward(self, frame, state):
        return self.cell(frame.flatten(1), state)


class AttentionCell(nn.Module):
    """The state is six slots that look at the rows of the frame."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(SIDE, CHANNELS)
        self.places = nn.Parameter(0.5 * torch.randn(SIDE, CHANNELS))
        self.layer = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.gate = nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, frame, state):
        rows = self.rows(frame[:, 0]) + self.places
        seen = self.layer(state, rows, rows, need_weights=False)[0]
        keep = torch.sigmoid(self.gate(torch.cat([seen, state], 2)))
        return keep * state + (1 - keep) * torch.tanh(seen)


class Watcher(nn.Module):
    def __init__(self, net):
        super().__init__()
        cells = {"conv": ConvCell, "dense": DenseCell, "attention": AttentionCell}
        shapes = {"conv": (CHANNELS, SIDE, SIDE), "dense": (72,), "attention": (6, CHANNELS)}
        self.cell, shape = cells[net](), shapes[net]
        self.start = nn.Parameter(0.1 * torch.randn(shape))
        self.head = nn.Linear(self.start.numel(), 4)

    def forward(self, frames):
        state = self.start.expand(len(frames), *self.start.shape)
        for frame in frames.unbind(1):
            state = self.cell(frame, state if args.repaired else state.detach())
        return self.head(state.flatten(1))


def batch(count):
    frames, y = torch.randn(count, LENGTH, 1, SIDE, SIDE), torch.randint(4, (count,))
    spot = F.one_hot(y, 4).float().view(count, 1, 2, 2)
    frames[:, 0] += 2 * F.interpolate(spot, scale_factor=3)
    return frames, y


model = Watcher(args.net)
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
