"""The rules: each looks at one frame (and remembers what it has said) and returns findings. No tensors, no hooks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.diagnose.rules import numbers, ranks
from gradlab.frame import Finding, Frame

_BACKWARD = ("output_grad.norm", "weight_grad.norm")
SILENT_FRAMES = 3
"""In so many logged steps in a row a gradient must be exactly zero before it is called silent."""


class Diagnosis:
    """Turns frames into findings, each said once until its cause has gone and come back."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._odd: set[int] = set()
        """The ranks that stood out in the last frame that tells."""
        self._zeros: dict[str, np.ndarray] = {}
        """By tag, in how many frames in a row each site's gradient was zero."""

    def look(self, frame: Frame) -> list[Finding]:
        """The new findings of a frame."""
        return [*self._nonfinite(frame), *self._silent(frame), *self._odd_ranks(frame)]

    def _nonfinite(self, frame: Frame) -> Iterator[Finding]:
        finding = numbers.first(frame)
        if finding is None:
            self._said.discard("nonfinite")
        elif "nonfinite" not in self._said:
            self._said.add("nonfinite")
            yield finding

    def _odd_ranks(self, frame: Frame) -> Iterator[Finding]:
        if not any(metric.endswith("@ranks") for metric in frame):
            return
        found = ranks.standing_out(frame)
        yield from (finding for rank, finding in found.items() if rank not in self._odd)
        self._odd = set(found)

    def _silent(self, frame: Frame) -> Iterator[Finding]:
        for metric in _BACKWARD:
            series = frame.get(metric)
            if series is None:
                continue
            is_zero, before = series.array == 0.0, self._zeros.pop(series.schema.tag, None)
            if not is_zero.any():
                continue
            zeros = np.where(is_zero, 1 if before is None else before + 1, 0)
            self._zeros[series.schema.tag] = zeros
            for index in np.flatnonzero(zeros == SILENT_FRAMES):
                yield _silent(frame.step, metric, series.schema.sites[index])


def _silent(step: int, metric: str, site: str) -> Finding:
    return Finding(
        step=step,
        kind="zero_gradient",
        site=site,
        message=f"{site} has had a gradient of exactly zero in {SILENT_FRAMES} logged steps up to step {step}.",
        evidence={metric: 0.0},
        advice="Look for a saturated or dead activation after it, or a path to the loss that is cut off.",
    )
