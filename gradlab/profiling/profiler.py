"""Profiler: profile windows of a training loop, driven step by step by whoever runs the loop.

Belongs here: the life of a window, from its first step to its result. Does not: when a window begins (triggers.py),
what is recorded (recording.py) and written (writer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from types import TracebackType

import torch
from torch import nn
from torch.optim import Optimizer

from gradlab.errors import ProfileError, never_stops_training, warn
from gradlab.finding import Finding
from gradlab.profiling.options import Profile
from gradlab.profiling.out_of_memory import OutOfMemory, explain
from gradlab.profiling.recording import Recording, someone_else_is_profiling
from gradlab.profiling.triggers import WindowScheduler
from gradlab.profiling.window import Reason, Window
from gradlab.profiling.writer import BackgroundWriter


class Profiler:
    """Records windows of whole training steps as `options` say, into one directory a window.

    A step runs from the end of the previous one, so it holds the wait for its data, forward, backward and optimizer.
    The loop calls `begin` once, and after each interruption; `data_ready` when a batch is there (optional); `step`
    after each step; `pause` when something that is no training starts; `close` at the end. All on one thread.

    A window is written in the background. What `pause` or `close` cut short is written with the steps that it has,
    and not at all if it has none. While another profiler records, no window is opened.

    Args:
        options: when, and what to record.
        folder: gets one directory a window: `step_000003/`, named for its first recorded step.
        model: time and memory are attributed to its modules.
        optimizers: gives the optimizers, whose state is a category of memory.
        on_window: gets the verdict on each window as a finding, on the training thread of rank zero.
        rank: of this process; part of the file names.
        world_size: how many processes train together; rank zero waits for the others' files.
        strict: raise `ProfileError` where something fails, instead of warning and going on without profiles.

    Cost (benchmarks/profiling.py): a microsecond a step outside windows. Within, about half a microsecond an event, as
    much as torch.profiler alone. At a window's end 2 microseconds an event on the training thread, torch's own, where
    a gzipped trace and `key_averages()` take 80; the rest is done in the background.
    """

    def __init__(
        self,
        options: Profile,
        folder: Path | str,
        model: nn.Module | None = None,
        *,
        optimizers: Callable[[], Iterable[Optimizer]] = tuple,
        on_window: Callable[[Finding], None] | None = None,
        rank: int = 0,
        world_size: int = 1,
        strict: bool = False,
    ) -> None:
        self.options = options
        self.folder = Path(folder)
        self.rank = rank
        self.world_size = world_size
        self.strict = strict
        self.windows: list[Path] = []
        """The directories of the windows that are complete; all of them after `close`."""
        self.failure: ProfileError | None = None
        """What switched the profiler off, if anything did."""
        self.scheduler = WindowScheduler(options, self.folder, rank=rank, world_size=world_size)
        """What decides when a window begins."""
        self._model = model
        self._optimizers = optimizers
        self._on_window = on_window
        self._writer = BackgroundWriter(self.folder, rank=rank, world_size=world_size, keep_raw=options.raw)
        self._window: Window | None = None  # the one under way; kept over a pause in its warm-up
        self._recording: Recording | None = None
        self._step = 0  # the number of the running step, as the loop counts
        self._is_running = False
        self._step_began = 0.0
        self._data_seconds = 0.0  # of the running step, as far as known
        self._reports_data = False  # whether the loop calls `data_ready`
        self._is_ordinary = False  # the running step has been without a window, a pause or an end of a window
        self._warned: set[str] = set()

    @never_stops_training
    def begin(self, step: int | None = None) -> None:
        """Training begins or goes on, with step number `step`: by default the one after the last."""
        if not self._is_running:
            self._step = self._step if step is None else step
            self._begin_step()
            self._is_ordinary = False

    @never_stops_training
    def data_ready(self) -> None:
        """The batch of the running step is there; what came before it in this step was waiting for data."""
        self._reports_data = True
        self._data_seconds = perf_counter() - self._step_began
        if self._recording is not None:
            self._recording.data_ready()

    @never_stops_training
    def step(self, step: int | None = None, *, data_seconds: float | None = None) -> None:
        """A step has ended: number `step`, which goes up by one from call to call. The next one begins.

        `data_seconds`, where the loop knows it, is how long the step waited for data.
        """
        from_beginning = self._is_running
        if step is not None:
            self._step = step
        self._measure_step(self._data_seconds if data_seconds is None else data_seconds)
        self._end_step(from_beginning=from_beginning)
        self._step += 1
        self._begin_step()

    @never_stops_training
    def pause(self) -> None:
        """Something that is no training starts, such as validation: no window is open in it. `begin` goes on."""
        self._is_running = False
        if self._recording is not None:
            has_steps = bool(self._recording.steps)
            if has_steps:
                self.scheduler.window_cut_short()
            self._close_window(keep=not has_steps)

    def close(self, *, failed: bool = False) -> None:
        """Write what was recorded, wait until it is written, leave nothing behind. May be called twice.

        `failed` says that training ended by an error: then no warning says why there was no window.
        """
        self._close()
        if not failed and self.failure is None and not self.windows and not self._warned:
            sentence = self.scheduler.missed_schedule()
            if sentence:
                self._warn_once(sentence)

    def request_window(self, reason: Reason) -> None:
        """Open a window with the next step, unless a limit is reached or one is open."""
        self.scheduler.request(reason)

    def finding_reported(self, finding: Finding) -> None:
        """A finding has come up, which may be a reason for a window."""
        if self.scheduler.trigger.on_finding and finding.severity != "info":
            self.request_window(Reason("finding", finding.message))

    def out_of_memory(self, error: BaseException) -> OutOfMemory:
        """What was in memory when `error`, a torch.OutOfMemoryError, was raised; written beside `folder` as well."""
        return explain(error, self._model, tuple(self._optimizers()), folder=self.folder, step=self._step)

    def fail(self, error: Exception) -> None:
        """Something failed: no more windows, and one warning; raises where `strict` asks for it."""
        recording, self._recording = self._recording, None
        self.failure = ProfileError(f"profiling into {self.folder} failed: {type(error).__name__}: {error}")
        self.failure.__cause__ = error
        if self._window is not None:
            self.scheduler.answer(self._window, error=f"no window: {self.failure}.")
        if recording is not None:
            try:
                recording.discard()
            except Exception as second:
                self.failure.add_note(f"and its window could not be closed: {second!r}")
        if self.strict:
            raise self.failure
        warn(f"{self.failure}. Training goes on without profiles.")

    def __enter__(self) -> Profiler:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.scheduler.position == 0:
            self._end_step(from_beginning=True)  # nobody called `step`: what ran inside was one
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(self.out_of_memory(error).sentence)
        self.close(failed=kind is not None)

    @never_stops_training
    def _close(self) -> None:
        self._is_running = False
        self._close_window()
        self._take_written()

    def _begin_step(self) -> None:
        """A step begins, and perhaps a window with it."""
        self._is_running = True
        self.scheduler.limits.run_began()
        self._step_began = perf_counter()
        self._is_ordinary = True
        if self._window is None:
            if self._writer.has_written:
                self._take_written()
            self._window = self.scheduler.window_at(self._step)
            if self._window is None:
                return
        self._is_ordinary = False
        if self._recording is None and not self._open_window(self._window):
            return
        if self._window.state != "warmup" and self._recording is not None:
            if not self._recording.started:
                self._recording.start()
            self._recording.begin_step(self._step, waits_for_data=self._reports_data)

    def _measure_step(self, data_seconds: float) -> None:
        """The time of a step that ends, outside windows, may be a reason for one."""
        now = perf_counter()
        seconds, self._step_began, self._data_seconds = now - self._step_began, now, 0.0
        if self._is_ordinary:
            self.scheduler.step_measured(self._step, seconds, data_seconds)

    def _end_step(self, *, from_beginning: bool) -> None:
        """A step ends, and the window with it whose last one it is; a step not seen from its beginning is in none."""
        if self._window is not None and from_beginning:
            is_last = self._window.state == "last"
            if self._recording is not None:
                self._recording.end_step()
            self._window.num_ended += 1
            if is_last:
                self._close_window()
        self.scheduler.step_ended(from_beginning=from_beginning)

    def _open_window(self, window: Window) -> bool:
        """Open a window, unless another profiler is recording: then this window is left out."""
        self._take_written()
        if someone_else_is_profiling():
            self._window = None
            self.scheduler.window_cut_short()
            self.scheduler.answer(window, error="no window: another profiler records in that process.")
            self._warn_once(
                "a profile window was left out: another profiler records, and two take each other's events."
            )
            return False
        self.scheduler.limits.window_opened(window.reason)
        self._recording = Recording(self.options, self._model, self._optimizers)
        self._recording.warm_up()
        return True

    def _close_window(self, *, keep: bool = False) -> None:
        """Stop recording, and write the window in the background if it has a whole step.

        With `keep` a window without one goes on after the pause.
        """
        recording, self._recording = self._recording, None
        window = self._window
        if not keep:
            self._window = None
        if recording is None or window is None:
            return
        limits = self.scheduler.limits
        if not recording.steps:
            recording.discard()
            limits.window_closed()
            limits.window_discarded()
            if not keep:
                self.scheduler.answer(window, error="no window: training ended before a whole step was recorded.")
            return
        recorded = recording.stop()
        limits.window_closed()
        self._take_written()
        self._writer.start(recorded, window)

    def _take_written(self) -> None:
        """Wait for the window that is being written, if there is one, and report what it shows."""
        written = self._writer.take_result()
        if written is None:
            return
        self.windows.append(written.folder)
        self.scheduler.limits.window_written(written.num_bytes, written.seconds)
        self.scheduler.answer(written.window, window=written.folder.name)
        for sentence in written.missing:
            self._warn_once(sentence)
        if self._on_window is not None and self.rank == 0:
            self._on_window(written.finding)

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            warn(sentence)
