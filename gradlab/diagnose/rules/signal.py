"""The signal on its way back: gradients that are exactly zero for several logged steps in a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.frame import Finding, Frame

ZERO_FRAMES = 3
"""In so many logged steps in a row a gradient must be exactly zero before there is a finding."""
_METRICS = ("output_grad.norm", "weight_grad.norm")


class ZeroGradients:
    """Counts, for each site, in how many frames in a row its gradient was zero."""

    def __init__(self) -> None:
        self._counts: dict[str, np.ndarray] = {}
        """By tag; [sites]."""

    def look(self, frame: Frame) -> Iterator[Finding]:
        """A finding for each site whose gradient has just been zero often enough."""
        for metric in _METRICS:
            series = frame.get(metric)
            if series is None:
                continue
            is_zero, before = series.array == 0.0, self._counts.pop(series.schema.tag, None)
            if not is_zero.any():
                continue
            counts = np.where(is_zero, 1 if before is None else before + 1, 0)
            self._counts[series.schema.tag] = counts
            for index in np.flatnonzero(counts == ZERO_FRAMES):
                yield _finding(frame.step, metric, series.schema.sites[index])


def _finding(step: int, metric: str, site: str) -> Finding:
    return Finding(
        step=step,
        kind="zero_gradient",
        site=site,
        message=f"{site} has had a gradient of exactly zero in {ZERO_FRAMES} logged steps up to step {step}.",
        evidence={metric: 0.0},
        advice="Look for a saturated or dead activation after it, or a path to the loss that is cut off.",
    )
