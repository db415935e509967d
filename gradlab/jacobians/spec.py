"""The options of a logged Jacobian slice, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradlab.errors import JacobianError


@dataclass(frozen=True, kw_only=True)
class JacobianSlice:
    """Log rows of d(of)/d(wrt) every so many steps: `JacobianSlice(of="output", wrt="input", rows=10, every=50)`."""

    of: str
    """The site that is differentiated: `output`, a module, a functional op or a `gradlab.tap` name."""
    wrt: str
    """The site that it is differentiated by: `input` or any other site, or a parameter."""
    rows: int | Sequence[int] | None = None
    """Which entries of `of`: the first so many, or a list of flat indices; all where left out."""
    cols: int | Sequence[int] | None = None
    """Which entries of `wrt` are kept: the first so many, or a list of flat indices; all where left out."""
    every: int = 100
    """Compute on every so many optimizer steps, the first one included."""
    samples: int = 1
    """How many samples of the probe batch; the logged block is their mean."""
    of_map: Literal["softmax"] | None = None
    """A function put on `of` first: `softmax` over its last axis turns logits into probabilities."""

    def __post_init__(self) -> None:
        for name in ("every", "samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise JacobianError(
                    f"JacobianSlice({self.of!r}, {self.wrt!r}): {name} must be at least 1, got {value!r}."
                )
        if self.of_map not in (None, "softmax"):
            raise JacobianError(
                f"JacobianSlice({self.of!r}, {self.wrt!r}): of_map must be 'softmax' or left out, got {self.of_map!r}."
            )
