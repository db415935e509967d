"""A rank that stands out: its data, its device or its code is not like that of the others.

Looks at each rank's own norms (`output.norm@ranks`, ...), before anything is reduced over ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.diagnose.context import Context
from gradlab.diagnose.registry import Evidence, rule
from gradlab.frame import Frame, Series, is_absent

APART = 10.0
"""So many times the median over ranks is the norm of a rank that stands out, or so many times smaller."""
_SUFFIX = ".norm@ranks"


@rule("GL901", "rank-stands-out", certainty="scale-free", clock="frame", ends_after=1)
def rank_stands_out(context: Context) -> Iterator[Evidence]:
    """One rank's numbers are far from those of the others, before anything is reduced over ranks.

    **What it sees.** Each rank's own norms, where taps watch them (`per_rank: true`): ten times the median over ranks,
    or ten times smaller.

    **Why it hurts.** After the reduction nobody can tell whose data or whose device is broken.

    **What to do.** Look at what that rank reads: its share of the data, its preprocessing, its seed.

    **What looks like it and is healthy.** Ranks with batches of very different lengths. Norms within a factor of ten
    are no finding.
    """
    frame = context.frames[-1]
    if any(metric.endswith("@ranks") for metric in frame):
        yield from standing_out(frame).values()


def standing_out(frame: Frame) -> dict[int, Evidence]:
    """By rank that stands out: what there is to say of the first site, in forward order, at which it does."""
    found: dict[int, Evidence] = {}
    for metric in ("output", "weight_grad", "output_grad"):
        series = frame.get(metric + _SUFFIX)
        if series is None:
            continue
        for rank, place in _apart(series):
            if rank not in found:
                found[rank] = _finding(frame, series, rank, place)
    return found


def _by_rank(series: Series) -> np.ndarray:
    """[sites, ranks] float64; NaN where a rank has none, infinity where its number is not finite."""
    size = int(series.schema.sites[-1].rpartition("@rank")[2]) + 1
    values = series.array.astype(np.float64)
    values[~np.isfinite(values)] = np.inf
    values[is_absent(series.array)] = np.nan
    return values.reshape(-1, size)


def _apart(series: Series) -> Iterator[tuple[int, int]]:
    """(rank, site) for each rank whose number is far from the others', at the first site where it is."""
    values = _by_rank(series)
    size = values.shape[1]
    for rank in range(size):
        middle = _middle(values, rank)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = values[:, rank] / middle
        # Of two ranks that differ the larger one is named: which one is right cannot be told.
        far = (ratio > APART) | ((ratio < 1 / APART) & (size > 2))
        far &= np.isfinite(middle) & (middle > 0)
        if far.any():
            yield rank, int(np.argmax(far))


def _middle(values: np.ndarray, rank: int) -> np.ndarray:
    """[sites]: the median over ranks, or of two ranks the other's number."""
    if values.shape[1] == 2:
        return values[:, 1 - rank]
    middle = np.full(len(values), np.nan)
    known = ~np.isnan(values).all(1)
    middle[known] = np.nanmedian(values[known], axis=1)
    return middle


def _finding(frame: Frame, series: Series, rank: int, place: int) -> Evidence:
    values = _by_rank(series)
    middle, size = float(_middle(values, rank)[place]), values.shape[1]
    site = series.schema.sites[place * size].rpartition("@rank")[0]
    what = {"output": "output", "output_grad": "output gradient", "weight_grad": "gradient before reduction"}
    name = what[series.schema.metric.removesuffix(_SUFFIX)]
    mine = float(series.array[place * size + rank])
    of = "that of the other" if size == 2 else "the median over ranks"
    how = f"is {mine / middle:.3g} times {of}" if np.isfinite(mine) else f"is not finite, {of} is"
    return Evidence(
        key=f"rank {rank}",
        sites=(f"{site}@rank{rank}",),
        message=f"rank {rank} stands out at step {frame.step}: the norm of its {name} at {site} {how}.",
        numbers={f"{series.schema.metric} of rank {rank}": mine, of: middle},
        remedy=f"Look at what rank {rank} reads: its share of the data, its preprocessing, its seed.",
        severity="warning" if np.isfinite(mine) else "error",
    )
