"""Windows: a few steps of training under torch.profiler, on a schedule, and files of them that TensorBoard reads.

`Profiler` is what a training loop's callback drives; `profile` is the same for a loop written by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec

from torch import nn

from gradlab.errors import ProfileError
from gradlab.profiling.recording import Recorded, Recording, someone_else_is_profiling
from gradlab.profiling.schedule import Profile
from gradlab.profiling.summary import summarize, write_summary
from gradlab.profiling.trace import write_trace

_UNTIL_CLOSED = 2**40
_P = ParamSpec("_P")


def _never_stops_training(
    method: Callable[Concatenate[Profiler, _P], None],
) -> Callable[Concatenate[Profiler, _P], None]:
    """What fails switches the profiler off, with one warning; it raises only where `strict` asks for it."""

    @wraps(method)
    def guarded(self: Profiler, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if self.failure is None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self._fail(error)

    return guarded


class Profiler:
    """Records windows of whole training steps on the schedule of `options`, into one directory a window.

    A step runs from the end of the previous one, so it holds the wait for its data, forward, backward and optimizer.
    The loop calls `begin` once, and after each interruption; `data_ready` when a batch is there (optional); `step`
    after each step; `pause` when something that is no training starts; `close` at the end. All on one thread.

    A window is written in the background. What `pause` or `close` cut short is written with the steps that it has,
    and not at all if it has none. While another profiler records, no window is opened.

    Args:
        options: when, and what to record.
        folder: gets one directory a window: `step_000003/`, named for its first recorded step.
        model: whose modules are marked, so that time and memory can be told by module.
        rank: of this process; part of the file names.
        strict: raise `ProfileError` where something fails, instead of warning and going on without profiles.

    Cost (benchmarks/profile_window.py): half a microsecond a step outside windows. Within, about half a microsecond an
    event, as much as torch.profiler alone. At a window's end 2 microseconds an event on the training thread, torch's
    own, where a gzipped trace and `key_averages()` take 80; the rest is done in the background.
    """

    def __init__(
        self,
        options: Profile,
        folder: Path | str,
        model: nn.Module | None = None,
        *,
        rank: int = 0,
        strict: bool = False,
    ) -> None:
        self.options = options
        self.folder = Path(folder)
        self.rank = rank
        self.strict = strict
        self.windows: list[Path] = []
        """The directories of the windows that are complete; all of them after `close`."""
        self.failure: ProfileError | None = None
        """What switched the profiler off, if anything did."""
        self._model = model
        self._recording: Recording | None = None
        self._writing: Future[Path] | None = None
        self._position = 0  # of the running step in the schedule
        self._number = 0  # of the running step, as the loop counts
        self._running = False
        self._told_of_data = False
        self._told_of_other = False

    @_never_stops_training
    def begin(self, step: int | None = None) -> None:
        """Training begins or goes on, with step number `step`: by default the one after the last."""
        if not self._running:
            self._number = self._number if step is None else step
            self._running = True
            self._enter_step()

    @_never_stops_training
    def data_ready(self) -> None:
        """The batch of the running step is there; what came before it in this step was waiting for data."""
        self._told_of_data = True
        if self._recording is not None:
            self._recording.data_ready()

    @_never_stops_training
    def step(self, step: int | None = None) -> None:
        """A step has ended: number `step`, which goes up by one from call to call. The next one begins."""
        seen = self._running
        self._leave_step()
        if step is not None:
            self._number = step
        if seen or self.options.phase(self._position) == "off":
            self._position += 1
        self._number += 1
        self._running = True
        self._enter_step()

    @_never_stops_training
    def pause(self) -> None:
        """Something that is no training starts, such as validation: no window is open in it. `begin` goes on."""
        self._running = False
        if self._recording is not None:
            if self._recording.steps:
                self._position = self.options.next_window(self._position)
            self._finish()

    @_never_stops_training
    def close(self) -> None:
        """Write what was recorded, wait until it is written, leave nothing behind. May be called twice."""
        self._running = False
        self._finish()
        self._collect()

    def __enter__(self) -> Profiler:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._position == 0:
            self._leave_step()  # nobody called `step`: what ran inside was one
        self.close()

    def _enter_step(self) -> None:
        phase = self.options.phase(self._position)
        if phase == "off":
            return
        if self._recording is None and not self._open():
            return
        if phase != "warmup" and self._recording is not None:
            if not self._recording.started:
                self._recording.start()
            self._recording.begin_step(self._number, waits_for_data=self._told_of_data)

    def _open(self) -> bool:
        """Open a window, unless another profiler is recording: then this window is left out."""
        self._collect()
        if someone_else_is_profiling():
            self._position = self.options.next_window(self._position)
            if not self._told_of_other:
                self._told_of_other = True
                _warn("a profile window was left out: another profiler records, and two take each other's events.")
            return False
        self._recording = Recording(self.options, self._model)
        self._recording.warm_up()
        return True

    def _leave_step(self) -> None:
        if self._recording is not None:
            self._recording.end_step()
            if self.options.phase(self._position) == "last":
                self._finish()

    def _finish(self) -> None:
        """Close the window and write it in the background if a whole step was recorded."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        if not recording.steps:
            recording.discard()
            return
        recorded = recording.stop()
        self._collect()
        writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradlab-profile")
        self._writing = writer.submit(_write, recorded, self.folder, self.rank)
        writer.shutdown(wait=False)

    def _collect(self) -> None:
        """Wait for the window that is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self.windows.append(writing.result())

    def _fail(self, error: Exception) -> None:
        recording, self._recording = self._recording, None
        self.failure = ProfileError(f"profiling into {self.folder} failed: {type(error).__name__}: {error}")
        self.failure.__cause__ = error
        if recording is not None:
            try:
                recording.discard()
            except Exception as second:
                self.failure.add_note(f"and its window could not be closed: {second!r}")
        if self.strict:
            raise self.failure
        _warn(f"{self.failure}. Training goes on without profiles.")


def _write(recorded: Recorded, folder: Path, rank: int) -> Path:
    window = write_trace(recorded, folder, rank=rank)
    write_summary(summarize(recorded, rank=rank), window)
    return window


def _warn(message: str) -> None:
    warnings.warn(f"gradlab: {message}", stacklevel=4)


def profile(
    logdir: Path | str,
    model: nn.Module | None = None,
    *,
    wait: int = 0,
    warmup: int = 0,
    active: int | None = None,
    repeat: int = 1,
    memory: bool = True,
    shapes: bool = False,
    stack: bool = False,
    strict: bool = False,
) -> Profiler:
    """Profile what runs inside a `with`, into `<logdir>/profile/`, for TensorBoard's PyTorch Profiler tab.

        with gradlab.profile("runs/mlp", model, wait=5, warmup=2, active=3) as p:
            for batch in loader:
                train(batch)
                p.step()

    Without `active` everything is recorded until the end; without a call of `step` it counts as one step.
    The other arguments are those of `Profile` and `Profiler`.
    """
    options = Profile(
        wait=wait,
        warmup=warmup,
        active=_UNTIL_CLOSED if active is None else active,
        repeat=repeat,
        memory=memory,
        shapes=shapes,
        stack=stack,
    )
    return Profiler(options, Path(logdir) / "profile", model, strict=strict)
