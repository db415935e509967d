"""Performance: follows one training loop and emits the scalars `perf/*` of it, always on.

Belongs here: when a step is counted, when scalars are emitted, when FLOPs are counted. Does not: when a phase of a step
begins (loop_hooks.py, `gradlab.lightning.phases`), the arithmetic (metrics.py), windows of torch.profiler
(`gradlab.profiling`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradlab.errors import warn
from gradlab.perf.clock import PhaseClock
from gradlab.perf.devices import device_of, peak_of
from gradlab.perf.flops import CallRecorder, count_flops
from gradlab.perf.loop_hooks import LoopHooks
from gradlab.perf.metrics import BatchSize, StepMeans, batch_size_of
from gradlab.perf.phases import Phase
from gradlab.perf.telemetry import Telemetry, memory_scalars

EVERY_STEPS = 10
_MEMORY_SECONDS = 1.0
_COUNTED_STEP = 2
"""The step whose FLOPs are counted: the first ones have one-time work in them, such as lazy modules and compilation."""

_log = logging.getLogger("gradlab")

Emit = Callable[[Mapping[str, float], int, float], None]
"""Takes scalars by tag, the step and the wall time."""


class Performance:
    """The scalars of speed and memory of one training loop, from `attach` (or `begin`) to `close`.

    A plain loop is followed by hooks: call `attach`. Where a framework reports its phases, let it drive `clock`, and
    call `begin` and `batch` instead.

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
        self._on_evaluation = on_evaluation
        self._loop_hooks: LoopHooks | None = None
        self._call_recorder: CallRecorder | None = None
        self._peak_tflops: float | None = None
        self._num_steps = 0
        self._is_disturbed = True  # the step under way is left out; so is the first, not seen from its beginning
        self._failed = False
        self._batch_size = BatchSize()  # of the step under way
        self._batch_sizes: dict[int, BatchSize] = {}  # by step, until its times are known
        self._means = StepMeans()
        self._memory_due = 0.0

    def attach(self) -> None:
        """Follow a loop that reports nothing, by hooks on the model and the loader."""
        self._loop_hooks = LoopHooks(
            self.clock,
            self._model,
            on_batch=self.batch,
            on_evaluation=self._evaluation_begins,
            on_error=self.fail,
        )
        self._loop_hooks.attach()

    def close(self) -> None:
        """Emit what is left and take the hooks out. May be called twice."""
        self.abandon()
        self._stop_recording_calls()
        if self._means.num_steps and not self._failed:
            self._emit_scalars()
        self._telemetry.close()

    def abandon(self) -> None:
        """Take the hooks out, emit nothing and do not touch the device: in a child process made by fork."""
        if self._loop_hooks is not None:
            self._loop_hooks.detach()
            self._loop_hooks = None

    def begin(self) -> None:
        """Training begins or goes on here."""
        self.clock.restart()

    def interrupt(self) -> None:
        """Something that is no training is in the step under way: it is left out."""
        self._is_disturbed = True

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
        if self._loop_hooks is not None:
            self._loop_hooks.optimizer_begins()

    def optimizer_ended(self) -> None:
        """An optimizer's step has ended, in a loop that is followed by hooks."""
        if self._loop_hooks is not None:
            self._loop_hooks.optimizer_ended()

    def batch(self, *batch: Any) -> None:
        """A batch is about to be trained on: its size counts."""
        try:
            self._batch_size = self._batch_size.plus(batch_size_of(batch))
        except Exception as error:
            self.fail(error)

    def step_ended(self, step: int) -> None:
        """The optimizer step of this number has ended."""
        if self._failed:
            return
        try:
            self._end_step(step)
        except Exception as error:
            self.fail(error)

    def model_changed(self) -> None:
        """The model has other layers by now: its FLOPs are counted again, in the next whole step."""
        if self._num_steps >= _COUNTED_STEP:
            self._num_steps = _COUNTED_STEP - 1
            self._stop_recording_calls()

    @property
    def data_seconds(self) -> float:
        """How long the last step waited for data."""
        return self.clock.data_ns / 1e9

    def fail(self, error: Exception) -> None:
        """Something failed: no more scalars, and one warning; raises where `strict` asks for it."""
        if self._strict:
            raise error
        if self._failed:
            return
        self._failed = True
        self.close()
        warn(f"the perf/* scalars were switched off: {type(error).__name__}: {error}")

    def _end_step(self, step: int) -> None:
        finished = self.clock.end_step(step, keep_open=self._loop_hooks is None)
        if self._loop_hooks is not None:
            self._loop_hooks.step_ended()
        if not self._is_disturbed:
            self._batch_sizes[step] = self._batch_size
        self._batch_size = BatchSize()
        self._is_disturbed = False
        for times in finished:
            if (size := self._batch_sizes.pop(times.step, None)) is not None:
                self._means.add(times, size)
        if self._means.num_steps >= EVERY_STEPS:
            self._emit_scalars()
        self._num_steps += 1
        if self._num_steps == _COUNTED_STEP:
            self._call_recorder = CallRecorder(self._model)
        elif self._call_recorder is not None:
            self._count_flops(self._call_recorder)

    def _emit_scalars(self) -> None:
        """Emit the means of the steps so far, and begin new ones."""
        scalars = self._means.scalars(flops_per_step=self.flops, peak_tflops=self._peak_tflops)
        scalars |= self._telemetry.scalars()
        now = time.monotonic()
        if now >= self._memory_due:
            self._memory_due = now + _MEMORY_SECONDS
            scalars |= memory_scalars(self.device)
        step = self._means.last_step
        self._means.reset()
        self._emit(scalars, step, time.time())

    def _count_flops(self, recorder: CallRecorder) -> None:
        """Count what the recorded step takes. The step under way pays for it, so it is left out of the means."""
        self._stop_recording_calls()
        self._is_disturbed = True
        calls = recorder.calls
        self.precision = calls[0].precision if calls else None
        try:
            self.flops = count_flops(calls) or None
            self.flops_missing = "" if self.flops else "no call of the model was seen"
        except Exception as error:
            self.flops_missing = f"the model does not run without values: {type(error).__name__}: {error}"
        if self.flops_missing:
            _log.info("perf/flops_per_step is left out: %s", self.flops_missing)
        elif self.device.type == "cuda":
            self._find_peak(calls[0].precision)

    def _stop_recording_calls(self) -> None:
        if self._call_recorder is not None:
            self._call_recorder.close()
            self._call_recorder = None

    def _find_peak(self, precision: torch.dtype | str) -> None:
        name = torch.cuda.get_device_name(self.device)
        peak = peak_of(name)
        self._peak_tflops = peak.tflops(precision) if peak is not None else None
        if self._peak_tflops is None:
            _log.info("perf/mfu is left out: no peak rate is known of %s at %s", name, precision)

    def _evaluation_begins(self) -> None:
        self.interrupt()
        if self._on_evaluation is not None:
            self._on_evaluation()
