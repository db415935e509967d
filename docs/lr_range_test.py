"""A learning-rate range test on digits: the rate rises step by step until training blows up. The picture of board.md.

python docs/lr_range_test.py runs/lr-range-test [STEPS]
tensorboard --logdir runs
"""

import sys
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import gradlab
from gradlab.events import EventWriter
from gradlab.sinks import TensorBoardSink


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.contract(F.gelu(self.expand(x)))


class Net(nn.Module):
    """Eight residual blocks between two linear layers."""

    def __init__(self, width=48):
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(8))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def main(logdir, num_steps):
    torch.manual_seed(0)
    pixels, digits = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    pixels = pixels.float() / 16
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    sink = TensorBoardSink(EventWriter(logdir))
    monitor = gradlab.watch(
        model,
        optimizer,
        taps=[
            gradlab.Tap("*", of="weight_grad", stats=["norm", "rms"]),
            gradlab.Tap("blocks.*", of="weight_grad", stats=["hist"], every=4),
            gradlab.Tap("*", of=["weight", "update"], every=2),
            gradlab.Tap(["blocks.?", "*/gelu", "stem"], of=["output", "output_grad"], stats=["norm", "zeros"]),
        ],
        jacobians=[gradlab.JacobianSlice(of="head", wrt="stem:in", rows=10, every=40)],
        sinks=[sink],
    )
    for step in range(num_steps):
        lr = 10 ** (-4 + 3.9 * step / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        chosen = torch.randint(0, len(pixels), (64,))
        loss = F.cross_entropy(model(pixels[chosen]), digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sink.scalars({"train/loss": loss.item(), "lr": lr}, step, time.time())
    monitor.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 600)
