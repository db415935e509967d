"""AttributedTimes: the time of the recorded steps by phase, module, operator and kernel, in nanoseconds.

Belongs here: the records that attribution.py fills and summary.py writes out. Does not: how time is attributed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from gradlab.perf.phases import Phase
from gradlab.profiling.analysis.events import Span
from gradlab.profiling.analysis.idle import Cause, IdleGap

TRACED_PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "other")
"""The phases of a step that a trace tells apart: it has no range around a copy to the device, a loss or a callback."""


class Owner(NamedTuple):
    """To whom a piece of time is attributed: a phase, and the modules that it is inside of.

    The modules are given by the names of their ranges, outermost first.
    """

    phase: Phase
    path: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Operator:
    """What one kind of operator took, nanoseconds over all recorded steps."""

    calls: int = 0
    short_calls: int = 0
    """Those of less than 5 microseconds of its own: there, calling costs more than computing."""
    host_self: int = 0
    """Time in it and in no operator inside it."""
    device: int = 0
    """Time of the kernels that it launched itself."""

    @property
    def calls_are_short(self) -> bool:
        """Whether its typical call takes less than 5 microseconds of its own."""
        return 2 * self.short_calls > self.calls


@dataclass(kw_only=True)
class Kernel:
    """What one kind of kernel, copy or fill took."""

    calls: int = 0
    time: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    """How often which operator launched it."""


class ModuleCall(NamedTuple):
    """One forward of one module, by the name of its range."""

    range_name: str
    start: int
    end: int


class StepSpan(NamedTuple):
    """When a recorded step ran."""

    step: int
    start: int
    end: int


@dataclass(kw_only=True)
class AttributedTimes:
    """The time of the recorded steps: by phase, by owner, by operator and kernel."""

    steps: dict[int, dict[Phase, int]] = field(default_factory=dict)
    """For each step its phases, which add up to its duration."""
    host: dict[Owner, int] = field(default_factory=lambda: defaultdict(int))
    """The host's time by owner; adds up to the duration of all steps."""
    device: dict[Owner, int] = field(default_factory=lambda: defaultdict(int))
    """The time of kernels, copies and fills by the owner of the operator that launched them."""
    operators: dict[str, Operator] = field(default_factory=lambda: defaultdict(Operator))
    calls: list[ModuleCall] = field(default_factory=list)
    """Every forward of every module inside the steps, in order of time."""
    span: Span = (0, 0)
    """From the beginning of the first step to the end of the last."""
    step_spans: list[StepSpan] = field(default_factory=list)
    """In order of time."""
    backward_spans: list[Span] = field(default_factory=list)
    """When backward nodes ran, in order of time."""
    optimizer_spans: list[Span] = field(default_factory=list)
    """When optimizers stepped, in order of time."""
    kernels: dict[str, Kernel] = field(default_factory=lambda: defaultdict(Kernel))
    device_busy: int = 0
    """How much of `span` at least one kernel, copy or fill was running."""
    gaps: list[tuple[IdleGap, str | None]] = field(default_factory=list)
    """When the device was idle, and the range of the module that ended it; with `device_busy` they are `span`."""
    exposed_collectives: int = 0
    """How much of `span` the device ran collectives and nothing else."""
    collectives: int = 0
    """How much of `span` at least one collective was under way, on the device or in a thread of the host."""
    outside_operators: int = 0
    """Host time in no operator and not waiting for data: Python, the autograd engine, other waits."""
    own_spans: list[Span] = field(default_factory=list)
    """When gradlab's own hooks worked, in order of time; their operators are in no other number but `other`."""
    own: int = 0
    """How much of the recorded steps that was."""
    own_idle: int = 0
    """How much of `span` the device was idle while they did."""
    own_device: int = 0
    """How much of `span` the device ran kernels of theirs and no others."""

    @property
    def idle_by_cause(self) -> Counter[Cause]:
        """How long the device was idle, by cause."""
        times: Counter[Cause] = Counter()
        for gap, _ in self.gaps:
            times[gap.cause] += gap.end - gap.start
        return times

    @property
    def overhead(self) -> int:
        """Host time that computes nothing: outside operators, and in those kinds whose typical call is short."""
        short = sum(kind.host_self for kind in self.operators.values() if kind.calls_are_short)
        return self.outside_operators + short
