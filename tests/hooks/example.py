"""A small model, and all that gradlab can put on it at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradlab
from gradlab import JacobianSlice, Tap

STATS = ["norm", "mean", "std", "max_abs", "zeros", "hist", "cosine"]


class Net(nn.Module):
    """Leaf modules, a container, functional ops."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.wide = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.wide(self.b(self.a(x)))) + 1


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def batch(seed: int = 0, size: int = 2) -> Tensor:
    return torch.randn(size, 4, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))


@contextmanager
def watching_everything(model: nn.Module, optimizer: Any, folder: Path | None = None) -> Iterator[gradlab.Monitor]:
    """All that gradlab puts anywhere: taps, a Jacobian of either kind, the always-on clock, the guard against NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gradlab: no profile was recorded")
        monitor = gradlab.watch(
            model,
            optimizer,
            taps=[
                Tap(["*", "*:in*"], of=["output", "output_grad"], stats=STATS),
                Tap("*", of=["weight", "weight_grad", "update"], stats=["norm", "std"]),
                Tap("*", of="weight_grad", stage=["clipped", "micro"]),
            ],
            jacobians=[
                JacobianSlice(of="b", wrt="a", rows=2, every=1),
                JacobianSlice(of="b", wrt="a", rows=2, every=1, mode="live"),
            ],
            nonfinite=gradlab.NonFinite(skip=True),
            performance=True,
            logdir=folder,
            strict=True,
        )
        with monitor:
            yield monitor
