"""What is asked: which slice of which Jacobian, of which samples. Pure settings; how they are answered is elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gradlab.arguments import described
from gradlab.errors import JacobianError
from gradlab.jacobians.axes import Picks
from gradlab.jacobians.isolation import Mode
from gradlab.values import key

Reduce = Literal["mean", "rms", "none"]
"""How the blocks of several samples become one: entrywise mean or root mean square, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A Jacobian slice to measure. The fields mean what they mean in `gradlab.jacobian`."""

    of: str = "output"
    wrt: str = "input"
    rows: Picks = None
    cols: Picks = None
    samples: Picks = None
    reduce: Reduce = "mean"
    of_map: Literal["softmax"] | None = None
    weights: Tensor | None = None
    groups: Mapping[str, Sequence[int]] | None = None
    mode: Mode = "eval"
    batched: bool | None = None
    chunk: int | None = None
    block: bool = True
    audit: bool = True
    spectrum: bool = True
    top: int = 8
    label: str = ""

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, str | bool)) or value not in known:
                words = ", ".join(map(repr, known))
                raise JacobianError(f"{name}={described(value)} means nothing here; give one of {words}.")
        given = [name for name in ("rows", "weights", "groups") if getattr(self, name) is not None]
        if len(given) > 1:
            raise JacobianError(f"{' and '.join(given)} both say what the rows are; give one of them.")
        for name in ("chunk", "top"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise JacobianError(f"{name}={value!r}: give a whole number from 1.")

    @property
    def is_bare(self) -> bool:
        """Whether the rows are plain entries of `of`."""
        return self.weights is None and self.groups is None

    def key(self) -> Hashable | None:
        """What two questions have in common where the same engine serves both; None where that cannot be told."""
        if self.mode != "eval" or not self.is_bare:
            return None
        return (self.of, self.wrt, self.of_map, self.batched, self.chunk, self.block, *map(_frozen, self._picks()))

    def _picks(self) -> tuple[Picks, ...]:
        return self.rows, self.cols, self.samples


_WORDS: dict[str, tuple[Any, ...]] = {
    "reduce": ("mean", "rms", "none"),
    "of_map": ("softmax", None),
    "mode": ("eval", "as_is"),
    "batched": (True, False, None),
}


def _frozen(picks: Picks) -> Hashable:
    return key(tuple(picks)) if isinstance(picks, Iterable) else key(picks)
