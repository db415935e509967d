"""Whether parameters move that no optimizer steps, by whatever hand: their norms at looks.

A version counter does not count what is written by way of `.data`. Belongs here: comparing norms. Does not: whose
(`collection`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import Tensor

from gradlab.facts.numbers import Numbers
from gradlab.facts.readings import is_readable

_MOST = 64
"""So many parameters are looked at."""


class Movement:
    """Remembers a norm of each parameter, and which of them have changed since."""

    def __init__(self) -> None:
        self._norms: dict[int, float] = {}
        self._moved: set[int] = set()

    def look(self, parameters: Mapping[int, Tensor], numbers: Numbers) -> None:
        """Begin to read some parameters, by id. Cost: 3 microseconds each."""
        left = {key: p.detach() for key, p in parameters.items() if key not in self._moved and is_readable(p)}
        for key, p in list(left.items())[:_MOST]:
            numbers.add(("moves", key), torch.linalg.vector_norm(p))

    def take(self, values: Mapping[Hashable, np.ndarray]) -> None:
        """Numbers of a look have arrived."""
        for key, norm in values.items():
            if isinstance(key, tuple) and key[0] == "moves":
                before = self._norms.setdefault(key[1], float(norm))
                if abs(float(norm) - before) > 1e-6 * abs(before):
                    self._moved.add(key[1])

    def moved(self) -> set[int]:
        """The ids of those that have changed, as far as their numbers have arrived."""
        return self._moved
