"""Windows: a few steps of training under torch.profiler, and files of them that TensorBoard reads.

`Profiler` is what a training loop's callback drives; `profile` is the same for a loop written by hand. When a window is
due is decided by schedule.py, watch.py and demand.py; what is in it by recording.py; what is written by writing.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Concatenate, ParamSpec

import torch
from torch import nn
from torch.optim import Optimizer

from gradlab.errors import GradlabWarning, ProfileError
from gradlab.frame import Finding
from gradlab.profiling.budget import Budget
from gradlab.profiling.demand import Inbox, ask_ranks
from gradlab.profiling.oom import OutOfMemory, explain
from gradlab.profiling.recording import Recording, someone_else_is_profiling
from gradlab.profiling.schedule import Profile, Reason, Trigger, Turn
from gradlab.profiling.watch import StepWatch
from gradlab.profiling.writing import UNTIL_CLOSED, Written, write_window

_P = ParamSpec("_P")
_log = logging.getLogger("gradlab")


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
        self._budget = Budget(options)
        self._trigger = options.trigger or Trigger()
        self._watch = StepWatch(self._trigger)
        self._inbox = Inbox(self.folder, rank=rank, world_size=world_size)
        self._turn: Turn | None = None
        self._asked: Reason | None = None
        self._recording: Recording | None = None
        self._writing: Future[Written] | None = None
        self._position = 0  # of the running step in the schedule
        self._number = 0  # of the running step, as the loop counts
        self._running = False
        self._began = 0.0  # the running step
        self._data_seconds = 0.0  # of the running step, as far as known
        self._undisturbed = False  # whether the running step has been without a window, a pause or an end of a window
        self._step_seconds = 0.0
        self._told_of_data = False
        self._told: set[str] = set()

    @_never_stops_training
    def begin(self, step: int | None = None) -> None:
        """Training begins or goes on, with step number `step`: by default the one after the last."""
        if not self._running:
            self._number = self._number if step is None else step
            self._running = True
            self._budget.begin()
            self._enter_step()
            self._undisturbed = False

    @_never_stops_training
    def data_ready(self) -> None:
        """The batch of the running step is there; what came before it in this step was waiting for data."""
        self._told_of_data = True
        self._data_seconds = perf_counter() - self._began
        if self._recording is not None:
            self._recording.data_ready()

    @_never_stops_training
    def step(self, step: int | None = None, *, data_seconds: float | None = None) -> None:
        """A step has ended: number `step`, which goes up by one from call to call. The next one begins.

        `data_seconds`, where the loop knows it, is how long the step waited for data.
        """
        seen = self._running
        if step is not None:
            self._number = step
        self._look(data_seconds if data_seconds is not None else self._data_seconds)
        self._leave_step(seen)
        if seen or not self.options.starts(self._position):
            self._position += 1
        self._number += 1
        self._running = True
        self._budget.begin()
        self._enter_step()

    @_never_stops_training
    def pause(self) -> None:
        """Something that is no training starts, such as validation: no window is open in it. `begin` goes on."""
        self._running = False
        if self._recording is not None:
            whole = bool(self._recording.steps)
            if whole and self._turn is not None:
                self._position = self.options.after_window(self._position)
            self._finish(keep_turn=not whole)

    def close(self, *, failed: bool = False) -> None:
        """Write what was recorded, wait until it is written, leave nothing behind. May be called twice.

        `failed` says that training ended by an error, so that nobody has to be told why there was no window.
        """
        self._end()
        if not failed and self.failure is None:
            self._say_if_nothing_came()

    @_never_stops_training
    def _end(self) -> None:
        self._running = False
        self._finish()
        self._collect()

    def ask(self, reason: Reason) -> None:
        """Open a window with the next step, unless the budget is used up or one is open."""
        if self.world_size == 1:
            self._asked = reason
        elif self.rank == 0:
            ask_ranks(self.folder, reason, active=self.options.active)

    def found(self, finding: Finding) -> None:
        """A finding has come up, which may be a reason for a window."""
        if self._trigger.on_finding and finding.severity != "info":
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
        if kind is None and self._position == 0:
            self._leave_step(seen=True)  # nobody called `step`: what ran inside was one
            self._position += 1
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(self.out_of_memory(error).sentence)
        self.close(failed=kind is not None)

    # What opens a window.

    def _due(self) -> Turn | None:
        """The window that begins with the step that is about to run, if any."""
        request = self._inbox.due(self._number, self._step_seconds)
        warmup, active = self.options.warmup, self.options.active
        if request is not None:
            turn = Turn(reason=request.reason, warmup=warmup, active=request.active, request=request.id)
        elif self.options.starts(self._position):
            turn = Turn(reason=Reason("schedule"), warmup=warmup, active=active)
        elif self._asked is not None:
            turn = Turn(reason=self._asked, warmup=warmup, active=active)
        else:
            return None
        self._asked = None
        refusal = self._budget.refusal(turn.reason)
        if refusal:
            self._leave_out(turn, refusal)
            return None
        return turn

    def _look(self, data_seconds: float) -> None:
        """The running step is over: was it out of the ordinary?"""
        now = perf_counter()
        seconds, self._began = now - self._began, now
        self._data_seconds = 0.0
        if not self._undisturbed:
            return
        self._step_seconds = seconds if not self._step_seconds else 0.9 * self._step_seconds + 0.1 * seconds
        reason = self._watch.look(self._number, seconds, data_seconds) if self.options.trigger is not None else None
        if reason is not None:
            self.ask(reason)

    def _leave_out(self, turn: Turn, why: str) -> None:
        if turn.request:
            self._inbox.answer(turn.request, error=f"no window: {why}.")
        if why not in self._told:
            self._told.add(why)
            _log.info("a profile window (%s) was left out: %s", turn.reason.kind, why)

    # The life of a window.

    def _enter_step(self) -> None:
        self._began = perf_counter()
        self._undisturbed = True
        if self._turn is None:
            if self._writing is not None and self._writing.done():
                self._collect()
            self._turn = self._due()
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
            self._position = self.options.after_window(self._position)
            if turn.request:
                self._inbox.answer(turn.request, error="no window: another profiler records in that process.")
            if "other" not in self._told:
                self._told.add("other")
                _warn("a profile window was left out: another profiler records, and two take each other's events.")
            return False
        self._budget.opened(turn.reason)
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
            self._budget.closed()
            self._budget.given_back()
            return
        recorded = recording.stop()
        self._budget.closed()
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
        self._budget.num_bytes += written.num_bytes
        self._budget.seconds += written.seconds
        if written.request:
            self._inbox.answer(written.request, window=written.window.name)
        for missing in written.missing:
            if missing not in self._told:
                self._told.add(missing)
                _warn(missing)
        if self._on_window is not None and self.rank == 0:
            self._on_window(written.finding)

    def _say_if_nothing_came(self) -> None:
        """One sentence where a schedule was set up and the run ended before its first window had a step."""
        first = self.options.wait + self.options.warmup
        waits_in_vain = self._position <= first and self.options.num_windows and "nothing" not in self._told
        if waits_in_vain and not self.windows and "other" not in self._told:
            self._told.add("nothing")
            steps = "1 step" if self._position == 1 else f"{self._position} steps"
            _warn(
                f"no profile was recorded: training ended after {steps}, and the first window begins after {first} "
                f"(wait={self.options.wait}, warmup={self.options.warmup})."
            )

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


def _warn(message: str) -> None:
    warnings.warn(f"gradlab: {message}", GradlabWarning, stacklevel=4)


def ranks() -> tuple[int, int]:
    """This process's rank and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def profile(
    logdir: Path | str,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    wait: int = 0,
    warmup: int = 0,
    active: int | None = None,
    repeat: int | None = None,
    every: int | None = None,
    trigger: Trigger | None = None,
    memory: bool = True,
    shapes: bool = False,
    stack: bool = False,
    raw: bool = False,
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
        active=UNTIL_CLOSED if active is None else active,
        repeat=repeat,
        every=every,
        trigger=trigger,
        memory=memory,
        shapes=shapes,
        stack=stack,
        raw=raw,
    )
    optimizers = () if optimizer is None else (optimizer,)
    rank, world_size = ranks()
    return Profiler(
        options,
        Path(logdir) / "profile",
        model,
        optimizers=lambda: optimizers,
        rank=rank,
        world_size=world_size,
        strict=strict,
    )
