"""Windows: a few steps of training under torch.profiler, and files of them that TensorBoard reads.

`Profiler` is what a training loop's callback drives. When a window is due is decided by opening.py; what is in it by
recording.py; what is written by writing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from types import TracebackType

import torch
from torch import nn
from torch.optim import Optimizer

from gradlab.errors import ProfileError, never_stops_training, warn
from gradlab.frame import Finding
from gradlab.profiling.options import Profile, Reason, Turn
from gradlab.profiling.out_of_memory import OutOfMemory, explain
from gradlab.profiling.recording import Recording, someone_else_is_profiling
from gradlab.profiling.triggers import Opener
from gradlab.profiling.writer import Written, write_window


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
        model: whose modules are marked, so that time and memory can be told by module.
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
        self._model = model
        self._optimizers = optimizers
        self._on_window = on_window
        self.opener = Opener(options, self.folder, rank=rank, world_size=world_size)
        """What decides when a window begins."""
        self._turn: Turn | None = None
        self._recording: Recording | None = None
        self._writing: Future[Written] | None = None
        self._number = 0  # of the running step, as the loop counts
        self._running = False
        self._began = 0.0  # the running step
        self._data_seconds = 0.0  # of the running step, as far as known
        self._undisturbed = False  # whether the running step has been without a window, a pause or an end of a window
        self._told_of_data = False
        self._told: set[str] = set()

    @never_stops_training
    def begin(self, step: int | None = None) -> None:
        """Training begins or goes on, with step number `step`: by default the one after the last."""
        if not self._running:
            self._number = self._number if step is None else step
            self._running = True
            self.opener.budget.begin()
            self._enter_step()
            self._undisturbed = False

    @never_stops_training
    def data_ready(self) -> None:
        """The batch of the running step is there; what came before it in this step was waiting for data."""
        self._told_of_data = True
        self._data_seconds = perf_counter() - self._began
        if self._recording is not None:
            self._recording.data_ready()

    @never_stops_training
    def step(self, step: int | None = None, *, data_seconds: float | None = None) -> None:
        """A step has ended: number `step`, which goes up by one from call to call. The next one begins.

        `data_seconds`, where the loop knows it, is how long the step waited for data.
        """
        seen = self._running
        if step is not None:
            self._number = step
        self._look(data_seconds if data_seconds is not None else self._data_seconds)
        self._leave_step(seen)
        self.opener.step_ended(seen=seen)
        self._number += 1
        self._running = True
        self.opener.budget.begin()
        self._enter_step()

    @never_stops_training
    def pause(self) -> None:
        """Something that is no training starts, such as validation: no window is open in it. `begin` goes on."""
        self._running = False
        if self._recording is not None:
            whole = bool(self._recording.steps)
            if whole:
                self.opener.cut_short()
            self._finish(keep_turn=not whole)

    def close(self, *, failed: bool = False) -> None:
        """Write what was recorded, wait until it is written, leave nothing behind. May be called twice.

        `failed` says that training ended by an error, so that nobody has to be told why there was no window.
        """
        self._end()
        sentence = "" if failed or self.failure is not None or self.windows else self.opener.waits_in_vain()
        if sentence and not self._told:
            self._tell(sentence)

    @never_stops_training
    def _end(self) -> None:
        self._running = False
        self._finish()
        self._collect()

    def ask(self, reason: Reason) -> None:
        """Open a window with the next step, unless the budget is used up or one is open."""
        self.opener.ask(reason)

    def found(self, finding: Finding) -> None:
        """A finding has come up, which may be a reason for a window."""
        if self.opener.trigger.on_finding and finding.severity != "info":
            self.ask(Reason("finding", finding.message))

    def out_of_memory(self, error: BaseException) -> OutOfMemory:
        """What was in memory when `error`, a torch.OutOfMemoryError, was raised; written below `folder` as well."""
        return explain(error, self._model, tuple(self._optimizers()), folder=self.folder, step=self._number)

    def __enter__(self) -> Profiler:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.opener.position == 0:
            self._leave_step(seen=True)  # nobody called `step`: what ran inside was one
            self.opener.step_ended(seen=True)
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(self.out_of_memory(error).sentence)
        self.close(failed=kind is not None)

    def _look(self, data_seconds: float) -> None:
        now = perf_counter()
        seconds, self._began, self._data_seconds = now - self._began, now, 0.0
        if self._undisturbed:
            self.opener.look(self._number, seconds, data_seconds)

    # The life of a window.

    def _enter_step(self) -> None:
        self._began = perf_counter()
        self._undisturbed = True
        if self._turn is None:
            if self._writing is not None and self._writing.done():
                self._collect()
            self._turn = self.opener.due(self._number)
            if self._turn is None:
                return
        self._undisturbed = False
        if self._recording is None and not self._open(self._turn):
            return
        if self._turn.phase != "warmup" and self._recording is not None:
            if not self._recording.started:
                self._recording.start()
            self._recording.begin_step(self._number, waits_for_data=self._told_of_data)

    def _open(self, turn: Turn) -> bool:
        """Open a window, unless another profiler is recording: then this window is left out."""
        self._collect()
        if someone_else_is_profiling():
            self._turn = None
            self.opener.cut_short()
            self.opener.answer(turn, error="no window: another profiler records in that process.")
            self._tell("a profile window was left out: another profiler records, and two take each other's events.")
            return False
        self.opener.budget.opened(turn.reason)
        self._recording = Recording(self.options, self._model, self._optimizers)
        self._recording.warm_up()
        return True

    def _leave_step(self, seen: bool) -> None:
        if self._turn is None or not seen:
            return
        last = self._turn.phase == "last"
        if self._recording is not None:
            self._recording.end_step()
        self._turn.taken += 1
        if last:
            self._finish()

    def _finish(self, *, keep_turn: bool = False) -> None:
        """Close the window and write it in the background if a whole step was recorded."""
        recording, self._recording = self._recording, None
        turn = self._turn
        if not keep_turn:
            self._turn = None
        if recording is None or turn is None:
            return
        if not recording.steps:
            recording.discard()
            self.opener.budget.closed()
            self.opener.budget.given_back()
            if not keep_turn:
                self.opener.answer(turn, error="no window: training ended before a whole step was recorded.")
            return
        recorded = recording.stop()
        self.opener.budget.closed()
        self._collect()
        writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradlab-profile")
        self._writing = writer.submit(
            write_window,
            recorded,
            self.folder,
            turn,
            rank=self.rank,
            world_size=self.world_size,
            keep_raw=self.options.raw,
        )
        writer.shutdown(wait=False)

    def _collect(self) -> None:
        """Wait for the window that is being written, and say what it shows."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        written = writing.result()
        self.windows.append(written.window)
        self.opener.budget.num_bytes += written.num_bytes
        self.opener.budget.seconds += written.seconds
        self.opener.answer(written.turn, window=written.window.name)
        for missing in written.missing:
            self._tell(missing)
        if self._on_window is not None and self.rank == 0:
            self._on_window(written.finding)

    def _tell(self, sentence: str) -> None:
        """Warn, once for each sentence."""
        if sentence not in self._told:
            self._told.add(sentence)
            warn(sentence)

    def fail(self, error: Exception) -> None:
        """Something failed: no more windows, and one warning; raises where `strict` asks for it."""
        recording, self._recording = self._recording, None
        self.failure = ProfileError(f"profiling into {self.folder} failed: {type(error).__name__}: {error}")
        self.failure.__cause__ = error
        if self._turn is not None:
            self.opener.answer(self._turn, error=f"no window: {self.failure}.")
        if recording is not None:
            try:
                recording.discard()
            except Exception as second:
                self.failure.add_note(f"and its window could not be closed: {second!r}")
        if self.strict:
            raise self.failure
        warn(f"{self.failure}. Training goes on without profiles.")
