"""The records that a window is made of: events, allocations, profiled modules, and memory that outlives a step.

Belongs here: plain records, without torch, and the names that gradlab's own ranges have among the events. Does not: how
they are recorded (`gradlab.profiling.recording`) and read from torch (`gradlab.profiling.kineto`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

STEP = "ProfilerStep#"
"""How the name of the range around a step begins; its number follows."""
UNFINISHED_STEP = "unfinished step "
"""The same for a step of which a trace has only a part: renamed, so that nobody averages over it."""
STEP_BODY = "[pl][profile]train_step"
DATA_WAIT = "enumerate(DataLoader)#gradlab.__next__"

OWN_WORK = "gradlab: own work"
"""The range around whatever gradlab's hooks do, as `gradlab.hooks.own_ranges` names it."""

Span = tuple[int, int]
"""From when to when, nanoseconds."""

Category = Literal["parameters", "gradients", "optimizer_state", "activations", "temporaries"]
CATEGORIES: tuple[Category, ...] = ("parameters", "gradients", "optimizer_state", "activations", "temporaries")
"""What memory is used for."""


class Event(NamedTuple):
    """One thing that happened: an operator, a range, or a kernel on a device."""

    name: str
    start: int
    """Nanoseconds, on the clock that all events of the window share."""
    end: int
    thread: int
    on_device: bool
    sequence: int = -1
    """Of a forward operator: the number that its backward node will carry. -1 where there is none."""
    forward_thread: int = 0
    """Of a backward node: the thread whose sequence numbers it carries. 0 where there is none."""
    correlation: int = 0
    """Of an operator: its own number."""
    launched_by: int = 0
    """Of a kernel or a call into the device's driver: the number of the operator that made it."""


class Allocation(NamedTuple):
    """A change of allocated memory, with its address."""

    time: int
    address: int
    num_bytes: int
    """Negative where memory was freed."""
    device: str


class PersistentBlock(NamedTuple):
    """Memory that outlives a step: of a parameter, a buffer, a gradient or an optimizer's state."""

    device: str
    num_bytes: int
    category: Category


PersistentMemory = Mapping[int, PersistentBlock]
"""The persistent blocks by their address."""


class ProfiledModule(NamedTuple):
    """A module whose forwards have a range: its qualified name ("" for the model itself), the name of its class."""

    name: str
    kind: str

    @property
    def range_name(self) -> str:
        """The range's name in the trace, as TensorBoard's module view spells it; the model goes by its class."""
        return f"[pl][module]{self.kind}: {self.name or self.kind}"


@dataclass(frozen=True, kw_only=True)
class WindowEvents:
    """All that was recorded in a window, read from torch."""

    events: Sequence[Event]
    allocations: Sequence[Allocation] = ()
    """In order of time; none where memory was not recorded."""
    steps: Sequence[int]
    """The steps that were recorded from their beginning to their end."""
    modules: Mapping[str, ProfiledModule]
    """The module behind each range's name."""
    memory_before: PersistentMemory = field(default_factory=dict)
    """The persistent memory when recording began."""
    memory_after: PersistentMemory = field(default_factory=dict)
    """The persistent memory when recording ended."""
    expects_kernels: bool = False
    """Whether the model is on a device whose kernels torch.profiler can record."""
    num_parameters: int | None = None
    """How many numbers the model's parameters hold; None where that is not known."""
    device_name: str | None = None
    """Of the CUDA device, where there is one."""
    torch_version: str = ""
