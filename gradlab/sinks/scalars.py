"""Frames, findings and Jacobian blocks as a few named numbers, for what cannot hold a vector.

Belongs here: which numbers, and what they are called. Does not: where they go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from gradlab.arguments import described
from gradlab.errors import UsageError
from gradlab.frame import Frame, JacobianBlock, Series, is_absent

Scalars = Literal["few", "all"]
"""`few`: the global gradient norm and its percentiles over sites; `all`: every value of every site too."""
_GRADIENT_NORM = "weight_grad.norm"
_PERCENTILES = (5, 50, 95)


def check_scalars(scalars: str) -> None:
    """Raise UsageError unless `scalars` is one of the choices."""
    if not isinstance(scalars, str) or scalars not in ("few", "all"):
        raise UsageError(f"scalars may be 'few' or 'all', got {described(scalars)}.")


def frame_scalars(frame: Frame, scalars: Scalars) -> dict[str, float]:
    """The native scalars of a frame, by tag.

    Those of `global_norms`, and `gradlab/<metric>/p05`, `p50` and `p95` over the sites for the same metrics, NaN left
    out; with `all` also those of `site_scalars`. Cost: about 12 microseconds for 200 sites.
    """
    found: dict[str, float] = {}
    for metric, present in _gradient_norms(frame):
        found[f"gradlab/global/{metric}"] = _norm(present)
        found |= {f"gradlab/{metric}/{name}": value for name, value in _percentiles(present).items()}
    return found | site_scalars(frame) if scalars == "all" else found


def global_norms(frame: Frame) -> dict[str, float]:
    """`gradlab/global/<metric>` for each stage of the gradient: the norm of all parameters' gradients as one vector.

    A NaN among them makes it NaN; sites without a value on this step do not count.
    """
    return {f"gradlab/global/{metric}": _norm(present) for metric, present in _gradient_norms(frame)}


def site_scalars(frame: Frame) -> dict[str, float]:
    """`<metric>/<site>` for every value of the frame. TensorBoard makes one group of cards a metric."""
    return {
        f"{metric}/{site}": value for metric, sites in present_numbers(frame).items() for site, value in sites.items()
    }


def present_numbers(metrics: Mapping[str, Series]) -> dict[str, dict[str, float]]:
    """By metric, the sites that have a number on this step, with it; histograms are left out."""
    return {metric: series.present() for metric, series in metrics.items() if not series.schema.edges}


def block_scalars(block: JacobianBlock, prefix: str = "") -> dict[str, float]:
    """`jacobian/<name>/<summary>` for each summary, and `audit_error` where the block was audited."""
    prefix = prefix or f"jacobian/{block.name}"
    found = {f"{prefix}/{key}": float(value) for key, value in block.summaries.items()}
    if not math.isnan(block.audit_error):
        found[f"{prefix}/audit_error"] = block.audit_error
    return found


def _gradient_norms(frame: Frame) -> list[tuple[str, np.ndarray]]:
    """The metrics that are norms of parameter gradients, whatever their stage, with the values that there are."""
    named = [(metric, series) for metric, series in frame.series.items() if metric.partition("@")[0] == _GRADIENT_NORM]
    return [(metric, present) for metric, series in named if len(present := _present(series))]


def _present(series: Series) -> np.ndarray:
    absent = is_absent(series.array)
    return series.array[~absent] if absent.any() else series.array


def _norm(values: np.ndarray) -> float:
    """The Euclidean norm in float64, in which the squares of float32 numbers cannot overflow."""
    wide = values.astype(np.float64)
    return math.sqrt(wide.dot(wide))


def _percentiles(values: np.ndarray) -> dict[str, float]:
    """`p05`, `p50` and `p95` as numpy computes them by default, which takes ten times as long on short arrays."""
    ordered = np.sort(values)  # NaN comes last
    count = len(ordered) if ordered[-1] == ordered[-1] else int(np.searchsorted(ordered, np.nan))
    return {f"p{p:02}": _at(ordered, (count - 1) * p / 100) for p in _PERCENTILES} if count else {}


def _at(ordered: np.ndarray, position: float) -> float:
    """The value at `position`, by linear interpolation between the two nearest."""
    below = int(position)
    share = position - below
    low = float(ordered[below])
    if share == 0:
        return low
    high = float(ordered[below + 1])
    return low if low == high else low * (1 - share) + high * share
