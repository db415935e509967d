"""Performance: the scalars `perf/*`, always on, from the phases of steps. docs/profile.md has the list of them.

Belongs here: means over a few steps, throughput, FLOP rates and what the device says of itself. Does not: when a phase
begins (loop.py, `gradlab.lightning.phases`), and windows of torch.profiler (window.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.errors import warn
from gradlab.perf.clock import PHASES, Phase, PhaseClock, StepTimes
from gradlab.perf.devices import Telemetry, device_of, memory_scalars
from gradlab.perf.flops import CallRecorder, count_flops
from gradlab.perf.loop_hooks import LoopMarks, tensors_in
from gradlab.perf.peaks import peak_of

EVERY_STEPS = 10
_MEMORY_SECONDS = 1.0
_COUNTED_STEP = 2
"""The first steps have one-time work in them: lazy modules, compilation."""

_log = logging.getLogger("gradlab")

Emit = Callable[[Mapping[str, float], int, float], None]
"""Takes scalars by tag, the step and the wall time."""


class Performance:
    """The always-on layer of one training loop.

    Args:
        model: what is trained.
        emit: gets the scalars, every ten steps, on the training thread.
        on_evaluation: called when an evaluation interrupts a plain loop.
        strict: raise where something fails, instead of one warning and going on without.

    Cost (benchmarks/profiling.py): some forty microseconds a step, and once, in the third step, the counting of FLOPs.
    """

    def __init__(
        self,
        model: nn.Module,
        emit: Emit,
        *,
        on_evaluation: Callable[[], None] | None = None,
        strict: bool = False,
    ) -> None:
        self.device = device_of(model)
        self.clock = PhaseClock(self.device)
        self.flops: int | None = None
        """Floating point operations of a step; None before they are counted, and where they cannot be."""
        self.flops_missing = ""
        """Why they cannot be counted."""
        self.precision: torch.dtype | str | None = None
        """In which the model's matrices are multiplied; None before a step has been looked at."""
        self._model = model
        self._emit = emit
        self._strict = strict
        self._telemetry = Telemetry(self.device)
        self._tell_evaluation = on_evaluation
        self._marks: LoopMarks | None = None
        self._calls: CallRecorder | None = None
        self._tflops: float | None = None
        self._num_steps = 0
        self._interrupted = True  # until a whole step has been seen
        self._failed = False
        self._sizes: dict[int, tuple[int, int]] = {}
        self._samples = self._tokens = 0
        self._sums: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        self._total = self._count = self._summed_samples = self._summed_tokens = 0
        self._last_step = -1
        self._memory_due = 0.0

    def attach(self) -> None:
        """Follow a loop that tells nothing, by hooks on the model and the loader."""
        self._marks = LoopMarks(
            self.clock,
            self._model,
            on_batch=self.batch,
            on_evaluation=self._evaluation_begins,
            on_error=self.fail,
        )
        self._marks.attach()

    def close(self) -> None:
        """Hand out what is left, let go. May be called twice."""
        if self._marks is not None:
            self._marks.detach()
            self._marks = None
        if self._calls is not None:
            self._calls.close()
            self._calls = None
        if self._count and not self._failed:
            self._hand_out()
        self._telemetry.close()

    def abandon(self) -> None:
        """Let go without handing anything out, and without a word to the device: in a child process made by fork."""
        if self._marks is not None:
            self._marks.detach()
            self._marks = None

    def begin(self) -> None:
        """Training begins or goes on here."""
        self.clock.restart()

    def interrupt(self) -> None:
        """Something that is no training is in the step under way: it is left out."""
        self._interrupted = True

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """What runs inside counts as `phase`."""
        self.clock.enter(phase)
        try:
            yield
        finally:
            self.clock.leave()

    def optimizer_begins(self) -> None:
        """An optimizer's step begins, in a loop that is followed by hooks."""
        if self._marks is not None:
            self._marks.optimizer_begins()

    def optimizer_ended(self) -> None:
        """It has ended."""
        if self._marks is not None:
            self._marks.optimizer_ended()

    def batch(self, *batch: Any) -> None:
        """A batch is about to be trained on: its size counts."""
        try:
            self._add_size(batch)
        except Exception as error:
            self.fail(error)

    def _add_size(self, batch: tuple[Any, ...]) -> None:
        first: Any = batch[0][0] if batch and isinstance(batch[0], tuple) and batch[0] else None
        if not isinstance(first, Tensor):
            first = next(tensors_in(batch), None)
        if first is None or first.ndim == 0:
            return
        self._samples += first.shape[0]
        if first.ndim == 2 and first.dtype in (torch.int64, torch.int32):
            self._tokens += first.numel()

    def step_ended(self, step: int) -> None:
        """An optimizer step has ended, with its number."""
        if self._failed:
            return
        try:
            self._step_ended(step)
        except Exception as error:
            self.fail(error)

    def model_changed(self) -> None:
        """The model has other layers by now: what a step takes is counted again, in the next whole one."""
        if self._num_steps >= _COUNTED_STEP:
            self._num_steps = _COUNTED_STEP - 1
            if self._calls is not None:
                self._calls.close()
                self._calls = None

    @property
    def data_seconds(self) -> float:
        """How long the last step waited for data."""
        return self.clock.data_ns / 1e9

    def _step_ended(self, step: int) -> None:
        known = self.clock.end_step(step, keep_open=self._marks is None)
        if self._marks is not None:
            self._marks.step_ended()
        if not self._interrupted:
            self._sizes[step] = (self._samples, self._tokens)
        self._samples = self._tokens = 0
        self._interrupted = False
        for times in known:
            self._add(times)
        if self._count >= EVERY_STEPS:
            self._hand_out()
        self._num_steps += 1
        if self._num_steps == _COUNTED_STEP:
            self._calls = CallRecorder(self._model)
        elif self._calls is not None:
            self._count_flops(self._calls)

    def _add(self, times: StepTimes) -> None:
        if times.step not in self._sizes:
            return
        samples, tokens = self._sizes.pop(times.step)
        for phase, nanoseconds in times.phases.items():
            self._sums[phase] += nanoseconds
        self._total += times.total
        self._summed_samples += samples
        self._summed_tokens += tokens
        self._count += 1
        self._last_step = times.step

    def _hand_out(self) -> None:
        """Write the means, and begin new ones."""
        scalars = self._means() | self._telemetry.scalars()
        now = time.monotonic()
        if now >= self._memory_due:
            self._memory_due = now + _MEMORY_SECONDS
            scalars |= memory_scalars(self.device)
        self._sums = dict.fromkeys(PHASES, 0)
        self._total = self._count = self._summed_samples = self._summed_tokens = 0
        self._emit(scalars, self._last_step, time.time())

    def _means(self) -> dict[str, float]:
        seconds = self._total / 1e9
        scalars = {"perf/step_ms": self._total / self._count / 1e6}
        for phase, nanoseconds in self._sums.items():
            if nanoseconds or phase == "other":
                scalars[f"perf/{phase}_ms"] = nanoseconds / self._count / 1e6
        if self._sums["data"]:
            scalars["perf/data_share"] = self._sums["data"] / self._total
        if self._summed_samples:
            scalars["perf/samples_per_second"] = self._summed_samples / seconds
        if self._summed_tokens:
            scalars["perf/tokens_per_second"] = self._summed_tokens / seconds
        if self.flops is not None:
            rate = self.flops * self._count / seconds / 1e12
            scalars |= {"perf/flops_per_step": float(self.flops), "perf/tflops_per_second": rate}
            if self._tflops is not None:
                scalars["perf/mfu"] = rate / self._tflops
        return scalars

    def _count_flops(self, calls: CallRecorder) -> None:
        """Once: what the step that was recorded takes. The step under way pays for it, so it is left out."""
        calls.close()
        self._calls = None
        self._interrupted = True
        self.precision = calls.calls[0].precision if calls.calls else None
        try:
            self.flops = count_flops(calls.calls) or None
            self.flops_missing = "" if self.flops else "no call of the model was seen"
        except Exception as error:
            self.flops_missing = f"the model does not run without values: {type(error).__name__}: {error}"
        if self.flops_missing:
            _log.info("perf/flops_per_step is left out: %s", self.flops_missing)
        elif self.device.type == "cuda":
            self._find_peak(calls.calls[0].precision)

    def _find_peak(self, precision: torch.dtype | str) -> None:
        name = torch.cuda.get_device_name(self.device)
        peak = peak_of(name)
        self._tflops = peak.tflops(precision) if peak is not None else None
        if self._tflops is None:
            _log.info("perf/mfu is left out: no peak rate is known of %s at %s", name, precision)

    def _evaluation_begins(self) -> None:
        self.interrupt()
        if self._tell_evaluation is not None:
            self._tell_evaluation()

    def fail(self, error: Exception) -> None:
        """Something failed: no more scalars, and one warning; raises where `strict` asks for it."""
        if self._strict:
            raise error
        if self._failed:
            return
        self._failed = True
        self.close()
        warn(f"the perf/* scalars were switched off: {type(error).__name__}: {error}")
