"""A recurrent network that predicts a long sum of waves, trained by backpropagation through time in chunks.

Healthy: the hidden state is carried from chunk to chunk and detached between them on purpose, so that a backward
goes through one chunk only; inside a chunk the history is whole. May fool rules on a detached hidden state.
Measured, seeds 0 to 2: loss from 1.29, 0.89, 1.03 to 0.007, 0.008, 0.006.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)

CHUNK, BATCH = 16, 32


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(1, 48)
        self.head = nn.Linear(48, 1)

    def forward(self, x, state):
        outputs = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs, 1), state


phase = 6.28 * torch.rand(BATCH, 1, 2)
speed = torch.tensor([0.3, 0.11])
model = Forecaster()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
state = None

for step in range(args.steps):
    t = torch.arange(step * CHUNK, (step + 1) * CHUNK + 1).view(1, -1, 1)
    wave = torch.sin(phase + speed * t).sum(2, keepdim=True) + 0.05 * torch.randn(BATCH, CHUNK + 1, 1)
    if state is not None:
        state = tuple(s.detach() for s in state)
    prediction, state = model(wave[:, :-1], state)
    loss = F.mse_loss(prediction, wave[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
