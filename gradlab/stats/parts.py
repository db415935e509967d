"""Parts: reductions of one tensor on its device, each written into a given slot without a host read.

Belongs here: what a part computes, how wide it is, and how one that fails is reported. Does not: what is made of parts
on the host (`combine`, `derive`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradlab.errors import TapError
from gradlab.stats.norms import norm_into

Part = Callable[[Tensor, Tensor], Any]
"""Reduces the first tensor into the second, a 0-d float32 tensor."""


def _norm(x: Tensor, out: Tensor) -> None:
    if x.dtype == torch.float64:
        out.copy_(torch.linalg.vector_norm(x))
    else:
        norm_into(x, out)


def _sum(x: Tensor, out: Tensor) -> None:
    torch.sum(x, dtype=torch.float32, dim=None, out=out)


def _spread(x: Tensor, out: Tensor) -> None:
    # Two passes: the difference of the sums of squares would lose half of the digits where the mean dominates.
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    _norm(x - x.mean() if x.numel() else x, out)


def _min(x: Tensor, out: Tensor) -> None:
    out.copy_(x.amin() if x.numel() else x.new_zeros(()))


def _max(x: Tensor, out: Tensor) -> None:
    out.copy_(x.amax() if x.numel() else x.new_zeros(()))


def _nonzero(x: Tensor, out: Tensor) -> None:
    out.copy_(torch.count_nonzero(x))


def _nonfinite(x: Tensor, out: Tensor) -> None:
    # x - x is 0 exactly where x is finite, and NaN elsewhere.
    out.copy_(torch.count_nonzero(x - x != 0))


def _subnormal(x: Tensor, out: Tensor) -> None:
    tiny = torch.finfo(x.dtype).tiny
    out.copy_(torch.count_nonzero((x.abs() < tiny) & (x != 0)))


HIST_EDGES = tuple(float(e) for e in range(-48, 17))
"""Of the histogram: log2 of the magnitude. Zeros and what is smaller fall into the first bin, what is larger or
infinite into the last; NaN is in none."""
_MOST_COUNTED = 1 << 24
"""Counts in float32 stand still beyond this."""


def _hist(x: Tensor, out: Tensor) -> None:
    low, high = HIST_EDGES[0], HIST_EDGES[-1]
    exponents = x.abs().to(torch.float32).log2_().clamp_(low, high - 1e-3)
    if exponents.numel() <= _MOST_COUNTED:
        torch.histc(exponents, bins=len(out), min=low, max=high, out=out)
    else:
        pieces = exponents.flatten().split(_MOST_COUNTED)
        counts = torch.stack([torch.histc(piece, bins=len(out), min=low, max=high) for piece in pieces])
        torch.sum(counts, dim=0, out=out)


PARTS: Mapping[str, Part] = {
    "norm": _norm,
    "sum": _sum,
    "spread": _spread,
    "min": _min,
    "max": _max,
    "nonzero": _nonzero,
    "nonfinite": _nonfinite,
    "subnormal": _subnormal,
    "hist": _hist,
}
"""`spread` is the norm of the deviations from the mean; `nonzero`, `nonfinite` and `subnormal` are counts."""

LINEAR = frozenset({"norm", "spread", "min", "max", "sum"})
"""The parts that grow with what the tensor is multiplied by, where that is positive."""

WIDTHS: Mapping[str, int] = {"hist": len(HIST_EDGES) - 1}
"""How many slots a part takes, where that is not one."""


def user_part(function: Callable[[Tensor], Tensor]) -> Part:
    """The part of a user's own stat: a function from a tensor to a 0-d tensor on the same device."""

    def part(x: Tensor, out: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):  # else `x @ x` in a forward under autocast is rounded
            value = function(x)
        if not isinstance(value, Tensor) or value.dim() != 0:
            seen = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TapError(f"the stat {function.__name__!r} gave {seen}; a stat gives a 0-d tensor")
        out.copy_(value)

    return part


class PartError(Exception):
    """Some parts of a tensor's statistics could not be computed; the others were."""

    def __init__(self, parts: Sequence[str], error: Exception) -> None:
        self.parts = tuple(parts)
        self.error = error
        super().__init__(f"{error}" if isinstance(error, TapError) else f"{type(error).__name__}: {error}")
