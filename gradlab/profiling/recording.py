"""Recording: torch.profiler from warm-up to stop, with ranges around steps, data waits and modules.

Belongs here: every call that makes torch.profiler record. Does not: when it records (profiler.py), the ranges around
modules (ranges.py), reading what was recorded (kineto.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradlab.errors import without_warnings
from gradlab.hooks import own_ranges
from gradlab.perf.devices import device_of
from gradlab.profiling.analysis.events import DATA_WAIT, STEP, STEP_BODY, PersistentMemory, ProfiledModule
from gradlab.profiling.options import Profile
from gradlab.profiling.persistent_memory import persistent_memory
from gradlab.profiling.ranges import ModuleRanges, Range


@dataclass(frozen=True, kw_only=True)
class RecordedWindow:
    """What a window has recorded, as torch holds it, and what the names of its ranges mean."""

    results: Any
    """torch's `_ProfilerResult`: `events()` may be read at any time, `save(path)` called once."""
    steps: tuple[int, ...]
    """The steps that were recorded from their beginning to their end."""
    unfinished: int | None
    """The step that was running when the window was closed early, of which only a part was recorded."""
    modules: Mapping[str, ProfiledModule]
    """The module behind each range's name."""
    with_memory: bool = True
    """Whether allocations were recorded."""
    memory_before: PersistentMemory = field(default_factory=dict)
    """The persistent memory when recording began."""
    memory_after: PersistentMemory = field(default_factory=dict)
    """The persistent memory when it ended."""
    expects_kernels: bool = False
    """Whether the model is on a device whose kernels torch.profiler can record."""
    num_parameters: int | None = None
    """How many numbers the model's parameters hold; None without a model."""


def someone_else_is_profiling() -> bool:
    """Whether a profiler is recording already. A second one would silently take its events away."""
    return torch._C._autograd._profiler_enabled()


class Recording:
    """torch.profiler over one window: `warm_up`, `start`, steps, and then `stop` or `discard`."""

    def __init__(
        self,
        options: Profile,
        model: nn.Module | None,
        optimizers: Callable[[], Iterable[Optimizer]] = tuple,
    ) -> None:
        self._module_ranges = ModuleRanges(model) if model is not None else None
        self._model = model
        self._optimizers = optimizers
        self._with_memory = options.memory
        self._memory_before: PersistentMemory = {}
        self._profiler: Any = _profiler(options)
        if model is not None:
            # Makes TensorBoard show the ranges of modules as a tree, with whatever framework they were recorded.
            self._profiler.preset_metadata_json("Framework", '"pytorch-lightning"')
        self._open_ranges: list[tuple[str, Any]] = []
        self._step: int | None = None
        self._is_warm = False
        self.started = False
        self.steps: list[int] = []

    def warm_up(self) -> None:
        """Make the profiler ready, so that its own start is not measured, and put the hooks of the modules in."""
        # Of a second cycle, which there is none of; torch 2.11 says so on the first one too.
        with without_warnings(message=".*Profiler clears events at the end of each cycle"):
            self._profiler.prepare_trace()
        self._is_warm = True
        if self._module_ranges is not None:
            self._module_ranges.attach()

    def start(self) -> None:
        """Record from here on."""
        if not self._is_warm:
            self.warm_up()
        self._memory_before = self._persistent_memory()
        self._profiler.start_trace()
        self.started = True
        own_ranges.make = Range

    def begin_step(self, step: int, *, waits_for_data: bool) -> None:
        """A step begins, and its wait for data with it if `data_ready` will be called to end that."""
        self._step = step
        self._enter(f"{STEP}{step}")
        if self._module_ranges is not None:
            self._enter(STEP_BODY)  # TensorBoard's module tree fails without one such range
        if waits_for_data:
            self._enter(DATA_WAIT)

    def data_ready(self) -> None:
        """The wait for data has ended."""
        if self._open_ranges and self._open_ranges[-1][0] == DATA_WAIT:
            self._exit()

    def end_step(self) -> None:
        """The step has ended."""
        if self._step is not None:
            self._exit_all()
            self.steps.append(self._step)
            self._step = None

    def stop(self) -> RecordedWindow:
        """Take the hooks out, stop recording, hand over. Cost: 5 to 25 ms a recorded step, inside torch."""
        unfinished, modules = self._step, self._module_ranges.modules if self._module_ranges is not None else {}
        try:
            self._close_ranges()
        finally:
            self.started = False
            self._profiler.stop_trace()
        return RecordedWindow(
            results=self._profiler.profiler.kineto_results,
            steps=tuple(self.steps),
            unfinished=unfinished,
            modules=modules,
            with_memory=self._with_memory,
            memory_before=self._memory_before,
            memory_after=self._persistent_memory(),
            expects_kernels=self._model is not None and device_of(self._model).type == "cuda",
            num_parameters=None if self._model is None else sum(p.numel() for p in self._model.parameters()),
        )

    def discard(self) -> None:
        """Take the hooks out, stop, keep nothing. Safe in every state."""
        try:
            self._close_ranges()
        finally:
            if self.started:
                self.started = False
                self._profiler.stop_trace()
            elif self._is_warm and not someone_else_is_profiling():
                # A profiler that was only warmed up makes kineto complain at the next one; started and stopped, not.
                self._profiler.start_trace()
                self._profiler.stop_trace()
            self._is_warm = False

    def _persistent_memory(self) -> PersistentMemory:
        return persistent_memory(self._model, self._optimizers()) if self._with_memory else {}

    def _close_ranges(self) -> None:
        own_ranges.make = None
        try:
            self._exit_all()
        finally:
            if self._module_ranges is not None:
                self._module_ranges.detach()

    def _enter(self, name: str) -> None:
        opened = Range(name)
        opened.__enter__()
        self._open_ranges.append((name, opened))

    def _exit(self) -> None:
        self._open_ranges.pop()[1].__exit__(None, None, None)

    def _exit_all(self) -> None:
        while self._open_ranges:
            self._exit()


def _profiler(options: Profile) -> torch.profiler.profile:
    verbose = torch._C._profiler._ExperimentalConfig(verbose=True) if options.stack else None
    return torch.profiler.profile(
        record_shapes=options.shapes,
        profile_memory=options.memory,
        with_stack=options.stack,
        experimental_config=verbose,  # without it the stacks are recorded but not written
    )
