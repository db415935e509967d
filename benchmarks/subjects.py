"""The models that the overhead and memory benchmarks train: each a model and one training step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Subject(NamedTuple):
    """Something to train, always from the same start on the same batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    criterion: Callable[[Tensor], Tensor]
    """The loss of the model's output."""

    def loss(self) -> Tensor:
        """The loss of one forward."""
        return self.criterion(self.model(self.x))

    def step(self) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


class Block(nn.Module):
    """A pre-norm transformer block with functional attention, gelu and residual adds."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, c))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x))))


class Transformer(nn.Module):
    """Twelve blocks; width 256 gives 10 million parameters, 1024 gives 150, width 16 a model that is all dispatch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(12))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class Residual(nn.Module):
    """Two convolutions with batch norm and a functional relu after the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def subject(model: nn.Module, x: Tensor, criterion: Callable[[Tensor], Tensor]) -> Subject:
    """The usual optimizer, in its usual implementation."""
    return Subject(model, torch.optim.AdamW(model.parameters(), foreach=True), x, criterion)


def transformer(device: str, width: int, batch: int, length: int) -> Subject:
    """Next-token prediction on random tokens."""
    tokens = torch.randint(0, 256, (batch, length), device=device)
    return subject(
        Transformer(width).to(device), tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())
    )


def classifier(device: str, model: nn.Module, x: Tensor) -> Subject:
    """Ten classes at random."""
    y = torch.randint(0, 10, (len(x),), device=device)
    return subject(model.to(device), x.to(device), lambda out: F.cross_entropy(out, y))


def mlp(device: str) -> Subject:
    """Six linear layers with ReLU modules between, 0.3 million parameters."""
    widths = [256, 256, 256, 256, 256, 10]
    layers = [m for a, b in zip([64, *widths], widths, strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return classifier(device, nn.Sequential(*layers[:-1]), torch.randn(128, 64))


def convnet(device: str) -> Subject:
    """A residual network on 32 x 32 images, 0.6 million parameters, with an in-place ReLU in front."""
    body = [Residual(64) for _ in range(8)]
    stem = [nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
    model = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return classifier(device, model, torch.randn(8, 3, 32, 32))


SUBJECTS: dict[str, Callable[[str], Subject]] = {
    "mlp": mlp,
    "convnet": convnet,
    "transformer": lambda device: transformer(device, 256, 4, 64),
    "dispatch-bound": lambda device: transformer(device, 16, 2, 16),
    "large transformer": lambda device: transformer(device, 1024, 8, 512),
}
LARGE = frozenset({"large transformer"})
"""What only a GPU trains in reasonable time."""


def make(name: str, device: str = "cpu") -> Subject:
    """The subject of a name, from a fixed seed."""
    torch.manual_seed(0)
    return SUBJECTS[name](device)


def names(device: str) -> list[str]:
    """The subjects that are measured on a device."""
    return [name for name in SUBJECTS if device != "cpu" or name not in LARGE]
