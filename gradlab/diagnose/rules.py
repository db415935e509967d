"""The rules: each looks at one frame (and remembers what it has said) and returns findings. No tensors, no hooks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.frame import Finding, Frame, Series, is_absent

_FORWARD, _BACKWARD = ("output.norm",), ("output_grad.norm", "weight_grad.norm")
SILENT_FRAMES = 3
"""In so many logged steps in a row a gradient must be exactly zero before it is called silent."""


class Diagnosis:
    """Turns frames into findings, each said once until its cause has gone and come back."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._zeros: dict[str, np.ndarray] = {}
        """By tag, in how many frames in a row each site's gradient was zero."""

    def look(self, frame: Frame) -> list[Finding]:
        """The new findings of a frame."""
        return [*self._nonfinite(frame), *self._silent(frame)]

    def _nonfinite(self, frame: Frame) -> Iterator[Finding]:
        for metric in (*_FORWARD, *_BACKWARD):
            series = frame.get(metric)
            if series is None:
                continue
            bad = _nonfinite_sites(series.values)
            key = ("nonfinite", metric)
            if not len(bad):
                self._said.discard(key)
            elif key not in self._said:
                self._said.add(key)
                yield _nonfinite(frame.step, metric, series, bad)

    def _silent(self, frame: Frame) -> Iterator[Finding]:
        for metric in _BACKWARD:
            series = frame.get(metric)
            if series is None:
                continue
            is_zero, before = series.values == 0.0, self._zeros.pop(series.schema.tag, None)
            if not is_zero.any():
                continue
            zeros = np.where(is_zero, 1 if before is None else before + 1, 0)
            self._zeros[series.schema.tag] = zeros
            for index in np.flatnonzero(zeros == SILENT_FRAMES):
                yield _silent(frame.step, metric, series.schema.sites[index])


def _nonfinite_sites(values: np.ndarray) -> np.ndarray:
    """The places of values that were seen and are not finite."""
    if np.isfinite(values).all():
        return np.empty(0, np.int64)
    bad = np.flatnonzero(~np.isfinite(values))
    return bad[~is_absent(values[bad])]


def _nonfinite(step: int, metric: str, series: Series, bad: np.ndarray) -> Finding:
    # Forward values go bad from the input on, gradients from the loss back: the origin is the first in that order.
    backward = metric in _BACKWARD
    origin = series.schema.sites[bad[-1] if backward else bad[0]]
    what = {"output.norm": "the output", "output_grad.norm": "the gradient", "weight_grad.norm": "the weight gradient"}
    others = f" and of {len(bad) - 1} other sites" if len(bad) > 1 else ""
    order = "nearest the loss" if backward else "first in the forward"
    return Finding(
        step=step,
        kind="nonfinite",
        site=origin,
        message=f"{what[metric]} of {origin} is not finite at step {step}{others} ({origin} is {order}).",
        evidence={metric: series[origin], "sites": float(len(bad))},
        advice="Lower the learning rate, clip gradients, or look for a division or logarithm of zero there.",
        severity="error",
    )


def _silent(step: int, metric: str, site: str) -> Finding:
    return Finding(
        step=step,
        kind="zero_gradient",
        site=site,
        message=f"{site} has had a gradient of exactly zero in {SILENT_FRAMES} logged steps up to step {step}.",
        evidence={metric: 0.0},
        advice="Look for a saturated or dead activation after it, or a path to the loss that is cut off.",
    )
