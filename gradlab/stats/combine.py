"""Parts of several tensors combined into the parts of their concatenation, on the host in float64.

The tensors are those of the micro-batches of a step: combined like this, the numbers do not depend on how a batch was
split.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradlab.stats.parts import PARTS

_EMPTY: Mapping[str, float] = {"min": np.inf, "max": -np.inf}
"""What a part is for a tensor without elements, where that is not 0."""


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
    values = np.where(counts > 0, pieces[part], _EMPTY.get(part, 0.0))
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
