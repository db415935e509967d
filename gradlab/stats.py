"""Statistics of one tensor, as a few cheap device reductions whose results are combined later on the host.

A **part** is a reduction tensor -> 0-d float32 tensor, written where it is told without a host read. A **stat** is what
people read, derived from parts in float64: the root mean square needs only the norm and the number of elements. Parts
of several tensors (the micro-batches of a step) combine exactly into the parts of their concatenation, so that the
numbers do not depend on how a batch was split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.errors import TapError

Part = Callable[[Tensor, Tensor], Any]
"""Reduces the first tensor into the second, a 0-d float32 tensor."""


def dense_values(tensor: Tensor) -> Tensor:
    """The tensor's own values, detached and dense: those of a sparse tensor coalesced, of a complex one as pairs."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)  # no reduction of torch's reads float8
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


LONG = 1 << 17
"""Beyond so many elements a CPU tensor's norm is taken by rows."""
_ROW = 1 << 12


def norm_into(x: Tensor, out: Tensor) -> None:
    """Write ‖x‖ of a detached strided tensor, float32 or narrower, into a 0-d float32 tensor.

    On a CPU torch adds squares up in eight float32 sums, one after another and on one thread: the norm of 4 million
    numbers is off by 1e-4 of itself, that of 100 million by 1e-2. Norms of rows of 4,096 numbers, and the norm of
    those, are right to a few millionths and use all threads. On a GPU torch's own reduction is a tree already.
    """
    if x.numel() > LONG and x.is_cpu:
        x = _row_norms(x)
        if x.numel() > LONG:
            return norm_into(x, out)
    torch.linalg.vector_norm(x, dtype=torch.float32, out=out)
    return None


def _row_norms(x: Tensor) -> Tensor:
    """[rows] float32: norms of pieces that make up x."""
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
        if not x.is_contiguous():
            if x.dim() > 1:
                return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
            x = x.contiguous()
    flat = x.view(-1)
    even = flat.numel() // _ROW * _ROW
    norms = torch.linalg.vector_norm(flat[:even].view(-1, _ROW), dim=1, dtype=torch.float32)
    if even == flat.numel():
        return norms
    return torch.cat([norms, torch.linalg.vector_norm(flat[even:], dtype=torch.float32).view(1)])


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

LINEAR = frozenset({"norm", "spread", "min", "max", "sum"})
"""The parts that grow with what the tensor is multiplied by, where that is positive."""

WIDTHS: Mapping[str, int] = {"hist": len(HIST_EDGES) - 1}
"""How many slots a part takes, where that is not one."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "norm": ("norm",),
    "rms": ("norm",),
    "mean": ("sum",),
    "std": ("sum", "spread"),
    "max_abs": ("min", "max"),
    "zeros": ("nonzero",),
    "nonfinite": ("nonfinite",),
    "underflow": ("subnormal",),
    "hist": ("hist",),
    "cosine": ("cosine",),
}
"""The parts that each stat is derived from."""

UNITS: Mapping[str, str] = {"zeros": "fraction", "underflow": "fraction", "nonfinite": "count", "hist": "count"}


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


EMPTY: Mapping[str, float] = {"min": np.inf, "max": -np.inf}
"""What a part is for a tensor without elements, where that is not 0."""


class PartError(Exception):
    """Some parts of a tensor's statistics could not be computed; the others were."""

    def __init__(self, parts: Sequence[str], error: Exception) -> None:
        self.parts = tuple(parts)
        self.error = error
        super().__init__(f"{error}" if isinstance(error, TapError) else f"{type(error).__name__}: {error}")


class CosineWithPrevious:
    """The part of the stat `cosine`: the angle to the same tensor of the previous logged step. Keeps a copy of it.

    `cos = <x, y> / (‖x‖ ‖y‖)` over all elements; NaN on the first step and where the shape has changed.
    """

    def __init__(self) -> None:
        self._previous: Tensor | None = None
        self._current: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._current = x.detach().clone()
        y = self._previous
        if y is None or y.shape != x.shape:
            out.fill_(torch.nan)
        else:
            out.copy_(torch.cosine_similarity(x.flatten(), y.flatten(), dim=0, eps=torch.finfo(x.dtype).tiny))

    def advance(self) -> None:
        """The step has ended."""
        self._previous, self._current = self._current, None


def parts_of(stats: Sequence[str]) -> tuple[str, ...]:
    """The parts that a set of stats needs, each once."""
    return tuple(dict.fromkeys(part for stat in stats for part in NEEDS.get(stat, (stat,))))


def noise_scale(squares: np.ndarray, k: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The simple gradient noise scale tr(Σ) / |G|² of McCandlish et al. (2018), appendix A.1, in micro-batches.

    With k micro-batches of equal size, whose gradients g_i add up to the gradient used, |g|² is the mean of |g_i|² and
    |ḡ|² = |Σ g_i|² / k². Unbiased: |G|² = (k |ḡ|² - |g|²) / (k - 1) and tr(Σ) = (|g|² - |ḡ|²) / (1 - 1/k). Does not
    depend on whether the losses were divided by k.

    Args:
        squares: [sites] float64 squared norms of the micro-batches' gradients, added up; all of one loss scale.
        k: [sites] float64, how many micro-batches these are.
        total: [sites] float64 norms of the sums of the gradients.
    Returns:
        [sites + 1]: of each parameter, and of all together; NaN with fewer than two micro-batches. Multiply by the
        size of a micro-batch for a number of samples. One step's estimate is noisy and may be negative: average both
        of its parts over steps.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        small = squares / k
        big = np.square(total) / np.square(k)
        signal, noise = (k * big - small) / (k - 1), (small - big) / (1 - 1 / k)
        both = [np.append(part, part[k > 1].sum()) for part in (noise, signal)]
        return np.asarray(both[0] / both[1])


def combine(part: str, pieces: Mapping[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """The part of a concatenation from the parts of its pieces.

    Args:
        part: the part's name.
        pieces: part -> [pieces, sites] float64, for this part and those that it needs (`spread` needs `sum`).
        counts: [pieces, sites] elements of each piece, 0 where a piece has no value for a site.
    Returns:
        [sites] float64. Spreads are merged by the pairwise formula of Chan, Golub and LeVeque (1979). A user's own stat
        is that of the last piece: how it combines is not known.
    """
    if part == "hist":
        return np.asarray(np.where(counts[..., None] > 0, pieces[part], 0.0).sum(axis=0))
    if part not in PARTS:
        last = len(counts) - 1 - np.argmax(counts[::-1] > 0, axis=0)
        return np.asarray(np.take_along_axis(pieces[part], last[None], axis=0)[0])
    values = np.where(counts > 0, pieces[part], EMPTY.get(part, 0.0))
    if part == "norm":
        return np.asarray(np.sqrt(np.sum(np.square(values), axis=0)))
    if part == "min":
        return np.asarray(values.min(axis=0))
    if part == "max":
        return np.asarray(values.max(axis=0))
    if part == "spread":
        sums = np.where(counts > 0, pieces["sum"], 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means, mean = sums / counts, sums.sum(axis=0) / counts.sum(axis=0)
            between = np.where(counts > 0, counts * np.square(means - mean), 0.0)
        return np.asarray(np.sqrt(np.sum(np.square(values) + between, axis=0)))
    return np.asarray(values.sum(axis=0))


def shift_bins(counts: np.ndarray, bins: int) -> np.ndarray:
    """[sites, bins] histograms over log2 magnitude of tensors that are divided by 2**bins; by whole bins."""
    if bins == 0:
        return counts
    places = np.clip(np.arange(counts.shape[-1]) - bins, 0, counts.shape[-1] - 1)
    moves = (places[:, None] == np.arange(counts.shape[-1])).astype(counts.dtype)
    return np.asarray(counts @ moves)


def derive(stat: str, parts: Mapping[str, np.ndarray], numel: np.ndarray) -> np.ndarray:
    """A stat from its parts, in float64.

    Args:
        stat: the stat's name.
        parts: part -> [sites] float64.
        numel: [sites] elements of each tensor.
    Returns:
        [sites] float64. `std` is that of the population. Of a tensor without elements the norm and all counts are 0;
        what is a share or a mean, and the largest of nothing, is NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if stat == "norm":
            return parts["norm"]
        if stat == "rms":
            return parts["norm"] / np.sqrt(numel)
        if stat == "mean":
            return parts["sum"] / numel
        if stat == "std":
            return np.asarray(parts["spread"] / np.sqrt(numel))
        if stat == "max_abs":
            return np.asarray(np.where(numel > 0, np.maximum(parts["max"], -parts["min"]), np.nan))
        if stat == "zeros":
            return np.asarray(1.0 - parts["nonzero"] / numel)
        if stat == "underflow":
            return np.asarray(parts["subnormal"] / numel)
        return parts[stat]
