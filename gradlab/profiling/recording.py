"""One window: torch.profiler from warm-up to stop, with marks around steps, data waits and modules.

Belongs here: every call into torch.profiler. Does not: when to open a window (window.py), what to write (trace.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradlab.errors import without_warnings
from gradlab.perf.devices import device_of
from gradlab.profiling.analysis.categories import Standing, standing
from gradlab.profiling.options import Profile
from gradlab.profiling.ranges import DATA, STEP, STEP_BODY, Module, ModuleMarks, Range


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a window saw: kineto's results, and what its marks mean."""

    results: Any
    """torch's `_ProfilerResult`: `events()` may be read at any time, `save(path)` called once."""
    steps: tuple[int, ...]
    """The steps that were recorded from their beginning to their end."""
    unfinished: int | None
    """The step that was running when the window was closed early, of which only a part was seen."""
    modules: Mapping[str, Module]
    """The module behind each range's name."""
    with_memory: bool = True
    """Whether allocations were recorded."""
    before: Standing = field(default_factory=dict)
    """The memory that stood when recording began."""
    after: Standing = field(default_factory=dict)
    """The memory that stood when it ended."""
    expects_kernels: bool = False
    """Whether the model is on a device whose kernels torch.profiler can record."""


def someone_else_is_profiling() -> bool:
    """Whether a profiler is recording already. A second one would silently take its events away."""
    return torch._C._autograd._profiler_enabled()


class Recording:
    """The life of one window: `warm_up`, `start`, steps, and then `stop` or `discard`."""

    def __init__(
        self,
        options: Profile,
        model: nn.Module | None,
        optimizers: Callable[[], Iterable[Optimizer]] = tuple,
    ) -> None:
        self._marks = ModuleMarks(model) if model is not None else None
        self._model = model
        self._optimizers = optimizers
        self._memory = options.memory
        self._before: Standing = {}
        self._profiler: Any = _profiler(options)
        if model is not None:
            # Makes TensorBoard show the module marks as a tree, with whatever framework they were recorded.
            self._profiler.preset_metadata_json("Framework", '"pytorch-lightning"')
        self._open: list[Any] = []
        self._current: int | None = None
        self._warm = False
        self.started = False
        self.steps: list[int] = []

    def warm_up(self) -> None:
        """Make the profiler ready, so that its own start is not measured, and put the module marks in."""
        # Of a second cycle, which there is none of; torch 2.11 says so on the first one too.
        with without_warnings(message=".*Profiler clears events at the end of each cycle"):
            self._profiler.prepare_trace()
        self._warm = True
        if self._marks is not None:
            self._marks.attach()

    def start(self) -> None:
        """Record from here on."""
        if not self._warm:
            self.warm_up()
        self._before = self._standing()
        self._profiler.start_trace()
        self.started = True

    def begin_step(self, step: int, *, waits_for_data: bool) -> None:
        """Mark the beginning of a step, and of its wait for data if `data_ready` will be called to end it."""
        self._current = step
        self._enter(f"{STEP}{step}")
        if self._marks is not None:
            self._enter(STEP_BODY)  # TensorBoard's module tree fails without one such mark
        if waits_for_data:
            self._enter(DATA)

    def data_ready(self) -> None:
        """Mark the end of the wait for data."""
        if self._open and self._open[-1][0] == DATA:
            self._exit()

    def end_step(self) -> None:
        """Mark the end of the step that is running."""
        if self._current is not None:
            self._exit_all()
            self.steps.append(self._current)
            self._current = None

    def stop(self) -> Recorded:
        """Take the marks out, stop recording, hand over. Cost: 5 to 25 ms a recorded step, inside torch."""
        unfinished, modules = self._current, self._marks.modules if self._marks is not None else {}
        try:
            self._close_marks()
        finally:
            self.started = False
            self._profiler.stop_trace()
        return Recorded(
            results=self._profiler.profiler.kineto_results,
            steps=tuple(self.steps),
            unfinished=unfinished,
            modules=modules,
            with_memory=self._memory,
            before=self._before,
            after=self._standing(),
            expects_kernels=self._model is not None and device_of(self._model).type == "cuda",
        )

    def discard(self) -> None:
        """Take the marks out, stop, keep nothing. Safe in every state."""
        try:
            self._close_marks()
        finally:
            if self.started:
                self.started = False
                self._profiler.stop_trace()
            elif self._warm and not someone_else_is_profiling():
                # A profiler that was only warmed up makes kineto complain at the next one; started and stopped, not.
                self._profiler.start_trace()
                self._profiler.stop_trace()
            self._warm = False

    def _standing(self) -> Standing:
        return standing(self._model, self._optimizers()) if self._memory else {}

    def _close_marks(self) -> None:
        try:
            self._exit_all()
        finally:
            if self._marks is not None:
                self._marks.detach()

    def _enter(self, name: str) -> None:
        opened = Range(name)
        opened.__enter__()
        self._open.append((name, opened))

    def _exit(self) -> None:
        self._open.pop()[1].__exit__(None, None, None)

    def _exit_all(self) -> None:
        while self._open:
            self._exit()


def _profiler(options: Profile) -> torch.profiler.profile:
    verbose = torch._C._profiler._ExperimentalConfig(verbose=True) if options.stack else None
    return torch.profiler.profile(
        record_shapes=options.shapes,
        profile_memory=options.memory,
        with_stack=options.stack,
        experimental_config=verbose,  # without it the stacks are recorded but not written
    )
