"""One run less another: a metric of both at the steps that they share, or in equal ranges of steps.

Belongs here: how two runs are laid over one another. Does not: reading them (`reader`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradlab.board.metrics import Metric
from gradlab.board.pooling import Cells, pool
from gradlab.board.reader import Loaded, Range, RunReader
from gradlab.errors import UsageError


def difference(ours: RunReader, theirs: RunReader, metric: Metric, steps: Range) -> tuple[Loaded, str]:
    """`ours` less `theirs`, and the scale: `log2 ratio` where all values are positive, else `difference`.

    At the steps that both have logged; where they share too few, in equal ranges of steps.

    Raises:
        UsageError: where `theirs` has no such metric, or the two have no sites or steps in common.
    """
    fine = replace(steps, num_columns=8 * steps.num_columns)
    b = theirs.load(theirs.metric(metric.name), fine)
    a = ours.load(metric, fine)
    sites = [site for site in a.sites if site in set(b.sites)]
    if not sites:
        raise UsageError(f"{ours.run} and {theirs.run} have no site in common in {metric.name}.")
    left, right = (one.cells.sites([one.sites.index(site) for site in sites]) for one in (a, b))
    left, right = _same_steps(left, right, steps.num_columns)
    positive = all(not (np.isfinite(one.mean) & (one.mean < 0)).any() for one in (left, right))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log2(left.mean / right.mean) if positive else left.mean - right.mean
    values = np.where(np.isfinite(values), values, np.float32(np.nan)).astype(np.float32)
    cells = Cells(left.first, left.last, values, values, values, left.bad + right.bad)
    merged = Loaded(tuple(sites), cells, max(a.block, b.block), a.sampled or b.sampled)
    return merged, "log2 ratio" if positive else "difference"


def _same_steps(left: Cells, right: Cells, columns: int) -> tuple[Cells, Cells]:
    shared = np.intersect1d(left.last, right.last)
    if len(shared) >= min(len(left), len(right)) / 2 and left.single and right.single:
        left, right = (one.columns(np.isin(one.last, shared)) for one in (left, right))
        start, end = (int(shared[0]), int(shared[-1])) if len(shared) else (0, 0)
        return pool(left, columns, start, end), pool(right, columns, start, end)
    if not len(left) or not len(right):
        raise UsageError("the two runs have no steps in common here.")
    start, end = max(left.first[0], right.first[0]), min(left.last[-1], right.last[-1])
    if end < start:
        raise UsageError("the two runs have no steps in common.")
    count = max(1, min(columns, len(left), len(right)) // 2)
    edges = np.linspace(start, end + 1, count + 1)
    return _binned(left, edges), _binned(right, edges)


def _binned(cells: Cells, edges: np.ndarray) -> Cells:
    """Exactly one column a range: the nearest one stands in where a range is empty."""
    inside = cells.columns((cells.last >= edges[0]) & (cells.first < edges[-1]))
    span = replace(inside, last=np.minimum(inside.last, int(edges[-1]) - 1))
    pooled = pool(span, len(edges) - 1, int(edges[0]), int(edges[-1]) - 1)
    centres = (edges[:-1] + edges[1:]) / 2
    nearest = np.abs((pooled.first + pooled.last)[None, :] / 2 - centres[:, None]).argmin(1)
    found = pooled.columns(nearest)
    return replace(found, first=edges[:-1].astype(np.int64), last=edges[1:].astype(np.int64) - 1)
