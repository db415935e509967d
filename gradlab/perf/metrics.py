"""The scalars `perf/*` of several steps: mean time by phase, throughput, FLOP rate and MFU. docs/profile.md lists them.

Belongs here: arithmetic on times and batch sizes. Does not: when the scalars are emitted (performance.py), and those
that the device reports by itself (telemetry.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradlab.perf.phases import PHASES, Phase, StepTimes
from gradlab.sites.leaves import leaves


class BatchSize(NamedTuple):
    """What one step was trained on."""

    num_samples: int = 0
    num_tokens: int = 0
    """0 where the batch is no [batch, length] of integers."""

    def plus(self, other: BatchSize) -> BatchSize:
        """Both together, as of two micro-batches of one step."""
        return BatchSize(self.num_samples + other.num_samples, self.num_tokens + other.num_tokens)


def batch_size_of(batch: tuple[Any, ...]) -> BatchSize:
    """The size of a batch by its first tensor; that of a call is the size of its first argument."""
    first: Any = batch[0][0] if batch and isinstance(batch[0], tuple) and batch[0] else None
    if not isinstance(first, Tensor):
        first = next((tensor for _, tensor in leaves(batch)), None)
    if first is None or first.ndim == 0:
        return BatchSize()
    are_tokens = first.ndim == 2 and first.dtype in (torch.int64, torch.int32)
    return BatchSize(first.shape[0], first.numel() if are_tokens else 0)


class StepMeans:
    """Sums over the steps since the last `reset`, and the scalars of their means."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.num_steps = 0
        self.last_step = -1
        self._phases: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        self._total = 0
        self._size = BatchSize()

    def add(self, times: StepTimes, size: BatchSize) -> None:
        """Count one more step."""
        for phase, nanoseconds in times.phases.items():
            self._phases[phase] += nanoseconds
        self._total += times.total
        self._size = self._size.plus(size)
        self.num_steps += 1
        self.last_step = times.step

    def scalars(self, *, flops_per_step: int | None, peak_tflops: float | None) -> dict[str, float]:
        """The scalars by tag; what is not known is left out.

        Args:
            flops_per_step: floating point operations of a step.
            peak_tflops: what the device can do at best, in 10^12 operations a second.
        """
        seconds = self._total / 1e9
        scalars = {"perf/step_ms": self._total / self.num_steps / 1e6}
        for phase, nanoseconds in self._phases.items():
            if nanoseconds or phase == "other":
                scalars[f"perf/{phase}_ms"] = nanoseconds / self.num_steps / 1e6
        if self._phases["data"]:
            scalars["perf/data_share"] = self._phases["data"] / self._total
        if self._size.num_samples:
            scalars["perf/samples_per_second"] = self._size.num_samples / seconds
        if self._size.num_tokens:
            scalars["perf/tokens_per_second"] = self._size.num_tokens / seconds
        if flops_per_step is not None:
            tflops = flops_per_step * self.num_steps / seconds / 1e12
            scalars |= {"perf/flops_per_step": float(flops_per_step), "perf/tflops_per_second": tflops}
            if peak_tflops is not None:
                scalars["perf/mfu"] = tflops / peak_tflops
        return scalars
