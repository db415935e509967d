"""Stats derived from parts on the host: which parts each needs, by which formula, and in which unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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


def parts_of(stats: Sequence[str]) -> tuple[str, ...]:
    """The parts that a set of stats needs, each once."""
    return tuple(dict.fromkeys(part for stat in stats for part in NEEDS.get(stat, (stat,))))


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
