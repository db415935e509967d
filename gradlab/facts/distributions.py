"""Whether matrices are as an initialization leaves them: still torch's own, or random numbers of any other kind.

Belongs here: reading the distribution of a parameter once, on its device. Does not: whose parameters are asked for
(`collection`), or what is wrong with one that is random (`diagnose.rules`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradlab.facts.numbers import Numbers
from gradlab.facts.readings import is_readable

_FEWEST = 64
"""Of fewer numbers the distribution cannot be told."""
_MOST = 256
"""Of a matrix so many rows and columns are read."""
_ITERATIONS = 12
_SURE = 4.0
"""An estimate may be so many standard errors away from what it is of random numbers."""
_EDGE = 1.12
"""The largest singular value may be so many times that of a random matrix. Random: 0.88 to 1.00; trained for 150 steps:
1.31 to 1.40, where its inputs and outputs are many."""
_TRUNCATED = 2.365, 2.274
"""Kurtosis of a normal distribution that is cut off at two standard deviations, and its bound by its rms."""


class _Shape(NamedTuple):
    fan_in: int
    rows: int
    columns: int


class Distributions:
    """What kind of numbers matrices hold, read once each.

    `nn.Linear` and convolutions draw from U(-b, b) with b = 1 / sqrt(fan_in): the largest magnitude is b, and the
    kurtosis is 1.8. After a hundred steps of training neither holds. Other initializations are uniform with another
    bound, normal (kurtosis 3) or orthogonal; their rows, columns and singular values are those of independent numbers.
    """

    def __init__(self) -> None:
        self._pending: dict[str, _Shape] = {}
        self._default: dict[str, bool] = {}
        self._random: dict[str, bool] = {}

    def look(self, parameters: Mapping[str, Tensor], numbers: Numbers) -> None:
        """Begin to read these, as far as they are not known yet. Cost: 100 microseconds each."""
        for name, p in parameters.items():
            if name in self._default or name in self._pending or not is_readable(p) or p.dim() < 2:
                continue
            if p.numel() >= _FEWEST:
                matrix = p.detach().flatten(1)
                fan_in = matrix.shape[1]
                matrix = matrix[:: -(-len(matrix) // _MOST), :: -(-fan_in // _MOST)].to(torch.float32)
                numbers.add(("init", name), _statistics(matrix))
                self._pending[name] = _Shape(fan_in, *matrix.shape)

    def take(self, values: Mapping[Hashable, np.ndarray]) -> None:
        """Numbers of a look have arrived."""
        for name, shape in list(self._pending.items()):
            if (found := values.get(("init", name))) is not None:
                is_uniform = _is_uniform(found, shape)
                reach, numel = found[0] * np.sqrt(shape.fan_in), shape.rows * shape.columns
                self._default[name] = is_uniform and bool(1 - 12 / numel - 0.005 <= reach <= 1.001)
                self._random[name] = _is_random(found, shape, is_uniform=is_uniform)
                del self._pending[name]

    def known(self) -> Mapping[str, bool]:
        """By name, as far as it is known: whether it has the distribution of torch's default init."""
        return self._default

    def random(self) -> Mapping[str, bool]:
        """By name, as far as it is known: whether its numbers look like independent random ones."""
        return self._random


def _statistics(matrix: Tensor) -> Tensor:
    """[8]: largest magnitude, rms, kurtosis, mean; relative variances of the squared norms of rows and of columns;
    largest singular value; how far the singular values are from all being equal (1)."""
    squares = matrix.square()
    power = squares.mean()
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    vector = torch.ones(len(gram), device=gram.device)
    vector[::2] = -0.5
    for _ in range(_ITERATIONS):
        vector = gram @ vector
        vector = vector / torch.linalg.vector_norm(vector)
    return torch.stack(
        [
            matrix.abs().amax(),
            power.sqrt(),
            squares.square().mean() / power.square(),
            matrix.mean(),
            squares.mean(1).var(correction=0) / power.square(),
            squares.mean(0).var(correction=0) / power.square(),
            (vector @ (gram @ vector)).sqrt(),
            len(gram) * gram.square().sum() / gram.diagonal().sum().square(),
        ]
    )


def _is_uniform(found: np.ndarray, shape: _Shape) -> bool:
    numel = shape.rows * shape.columns
    return bool(abs(found[2] - 1.8) < _SURE * 1.6 / np.sqrt(numel) + 0.02)


def _is_random(found: np.ndarray, shape: _Shape, *, is_uniform: bool) -> bool:
    """Whether the numbers are uniform or normal, truncated or not, and independent; or an orthogonal matrix."""
    largest, rms, kurtosis, mean, by_rows, by_columns, singular, unlike = found
    _, rows, columns = shape
    numel = rows * columns
    if not np.isfinite(found).all() or rms == 0:
        return False
    if unlike < 1.001 and min(rows, columns) > 1:
        return True
    reach = largest / rms / (1 + _SURE * np.sqrt(kurtosis / (4 * numel)))
    is_truncated = abs(kurtosis - _TRUNCATED[0]) < _SURE * 2.5 / np.sqrt(numel) + 0.02 and reach < _TRUNCATED[1]
    is_normal = abs(kurtosis - 3) < _SURE * np.sqrt(24 / numel) + 0.02
    is_kind = (is_uniform and reach < np.sqrt(3)) or is_normal or is_truncated
    spread = max(kurtosis - 1, 1e-9)
    is_even = by_rows < spread / columns * (1 + _SURE * np.sqrt(2 / rows)) and by_columns < spread / rows * (
        1 + _SURE * np.sqrt(2 / columns)
    )
    is_flat = singular < _EDGE * rms * (np.sqrt(rows) + np.sqrt(columns))
    return bool(is_kind and is_even and is_flat and abs(mean) < _SURE * rms / np.sqrt(numel))
