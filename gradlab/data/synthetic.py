"""Synthetic: generated samples of any number, for trying out a model where the answer is known."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from gradlab.data.in_memory import Samples, TensorData
from gradlab.errors import UsageError, did_you_mean

Kind = Literal["blobs", "spirals", "regression"]


class Synthetic(TensorData):
    """Blobs (a normal cloud a class), spirals (an arm a class, in the plane) or a regression (a linear map, noise)."""

    def __init__(
        self,
        kind: Kind = "blobs",
        num_samples: int = 1024,
        in_features: int = 2,
        num_outputs: int = 3,
        noise: float = 0.1,
        batch_size: int = 64,
        val_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Choose them.

        Args:
            kind: `blobs`, `spirals` or `regression`.
            num_samples: training and validation together.
            in_features: numbers in one input; spirals have two.
            num_outputs: classes, or the numbers of one regression target.
            noise: standard deviation of what is added: to the inputs of classes, to the targets of a regression.
            batch_size: samples in a batch.
            val_fraction: the share that is kept for validation.
            seed: decides the samples, the split and the order.
            num_workers: processes that load batches; 0 is fastest, since all is in memory.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__(batch_size=batch_size, val_fraction=val_fraction, seed=seed, num_workers=num_workers)
        if kind not in _MAKERS:
            near = did_you_mean(str(kind), _MAKERS)
            raise UsageError(f"Synthetic: kind has no {kind!r}.{near} It may be {', '.join(_MAKERS)}.")
        self.check_count("num_samples", num_samples, least=2)
        self.check_count("in_features", in_features)
        self.check_count("num_outputs", num_outputs)
        if kind == "spirals" and in_features != 2:
            raise UsageError(f"Synthetic: spirals lie in the plane, so in_features must be 2, got {in_features}.")
        if noise < 0:
            raise UsageError(f"Synthetic: noise must be 0 or more, got {noise!r}.")
        self.kind = kind
        self.num_samples = num_samples
        self.in_features = in_features
        self.num_outputs = num_outputs
        self.noise = noise
        if kind != "regression":
            self.class_names = tuple(map(str, range(num_outputs)))

    def samples(self) -> tuple[Samples, Samples]:
        """Inputs float32 [n, in_features]; targets int64 [n] classes, or float32 [n, num_outputs]."""
        return self.split(*_MAKERS[self.kind](self, torch.Generator().manual_seed(self.seed)))

    def _classes(self) -> Tensor:
        return torch.arange(self.num_samples) % self.num_outputs

    def _blobs(self, generator: Generator) -> Samples:
        """Centres from a normal distribution."""
        target = self._classes()
        centres = torch.randn(self.num_outputs, self.in_features, generator=generator)
        noise = torch.randn(self.num_samples, self.in_features, generator=generator)
        return centres[target] + self.noise * noise, target

    def _spirals(self, generator: Generator) -> Samples:
        """One turn from the centre to radius 1, an arm a class."""
        target = self._classes()
        radius = torch.rand(self.num_samples, generator=generator)
        angle = 2 * math.pi * (radius + target / self.num_outputs)
        points = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)
        return points + self.noise * torch.randn(self.num_samples, 2, generator=generator), target

    def _regression(self, generator: Generator) -> Samples:
        """A random linear map of normal inputs."""
        inputs = torch.randn(self.num_samples, self.in_features, generator=generator)
        weight = torch.randn(self.in_features, self.num_outputs, generator=generator)
        noise = torch.randn(self.num_samples, self.num_outputs, generator=generator)
        return inputs, inputs @ weight + self.noise * noise


_MAKERS = {"blobs": Synthetic._blobs, "spirals": Synthetic._spirals, "regression": Synthetic._regression}
