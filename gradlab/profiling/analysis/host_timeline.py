"""The host's timeline of a window: every nanosecond of the recorded steps attributed to a phase and a module.

Belongs here: the one pass over the host's events in order of time. Does not: the device's kernels (attribution.py).

At each instant the innermost open event has the time, and its owner is its own module's range, or what it inherits from
the event around it. A backward node belongs to the module whose forward made it: the operator that made it carries the
node's sequence number. So nothing is counted twice, and modules plus unattributed time are exactly the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gradlab.perf.phases import Phase
from gradlab.profiling.analysis.attributed_times import TRACED_PHASES, AttributedTimes, ModuleCall, Owner, StepSpan
from gradlab.profiling.analysis.events import DATA_WAIT, OWN_WORK, STEP, STEP_BODY, Event, ProfiledModule, Span
from gradlab.profiling.analysis.kernels import HOST_COLLECTIVES

_BACKWARD = "autograd::engine::evaluate_function: "
_ACCUMULATE = _BACKWARD + "torch::autograd::AccumulateGrad"
_LOADER = "enumerate(DataLoader)#"
_OPTIMIZER = ("Optimizer.step#", "Optimizer.zero_grad#")
_COLLECTIVE = ("c10d::", "record_param_comms", *HOST_COLLECTIVES)
_SHORT_NS = 5_000


class Launcher(NamedTuple):
    """The operator that launched a kernel, its owner, and whether it is gradlab's own work."""

    owner: Owner
    operator: str
    is_own: bool = False


class HostTimeline:
    """The timeline of the training thread: its events, and those of the threads that run its backward.

    Args:
        steps: the steps that were recorded from beginning to end.
        modules: the module behind each range's name.
    """

    def __init__(self, steps: Iterable[int], modules: Mapping[str, ProfiledModule]) -> None:
        self.times = AttributedTimes()
        self.launchers: dict[int, Launcher] = {}
        """By the number of an operator: what launched the kernels that carry this number."""
        self.data_spans: list[Span] = []
        """When the host waited for data."""
        self._steps = {f"{STEP}{step}": step for step in steps}
        self._modules = modules
        self._owner_of_wait = Owner("data")
        self._node_owners: dict[tuple[int, int], Owner] = {}
        self._last_node = Owner("backward")
        self._stack: list[_OpenEvent] = []

    def attribute(self, events: list[Event], *, keep_launchers: bool) -> None:
        """Attribute the time of the host's events; `keep_launchers` where a device ran kernels."""
        if any(_is_loader(event.name) for event in events):
            # The loader has a range of its own: the wait around it holds the rest of the loop too.
            self._owner_of_wait = Owner("other")
        threads = {event.thread for event in events if event.name in self._steps or event.name.startswith(_BACKWARD)}
        for event in sorted(events, key=lambda event: (event.start, -event.end)):
            if event.thread not in threads:
                continue
            self._close_until(event.start)
            opened = self._push(event, self._owner(event))
            if keep_launchers and event.correlation and opened.step is not None:
                self.launchers[event.correlation] = Launcher(opened.owner, event.name, opened.is_own)
        self._close_until(None)

    def _push(self, event: Event, owner: Owner) -> _OpenEvent:
        """Open an event inside those that are open."""
        around = self._stack[-1] if self._stack else None
        step = self._steps.get(event.name, around.step if around is not None else None)
        # The backward may run on a thread of its own while the training thread waits: cut to what is around it, the
        # two are one timeline.
        is_own = event.name == OWN_WORK or (around is not None and around.is_own)
        end = event.end if around is None else min(event.end, around.end)
        opened = _OpenEvent(event, end, Owner("other") if is_own else owner, step, is_own=is_own)
        if event.name in self._steps:
            self._open_step(opened, self._steps[event.name])
        if around is not None:
            self._nest(opened, around)
        if is_own and step is not None and not (around is not None and around.is_own):
            self.times.own_spans.append((event.start, opened.end))
            self.times.own += opened.end - event.start
        if opened.owner.phase != "forward":
            self._note_span(opened, around.owner.phase if around is not None else None)
        if step is not None and event.name in self._modules and opened.owner.phase == "forward":
            self.times.calls.append(ModuleCall(event.name, event.start, opened.end))
        self._stack.append(opened)
        return opened

    def _note_span(self, opened: _OpenEvent, around: Phase | None) -> None:
        """Keep when the host waited for data, ran a backward node or an optimizer."""
        phase, span = opened.owner.phase, (opened.event.start, opened.end)
        if phase == around:
            return
        if phase == "data":
            self.data_spans.append(span)
        elif phase == "backward":
            self.times.backward_spans.append(span)
        elif phase == "optimizer":
            self.times.optimizer_spans.append(span)

    def _nest(self, opened: _OpenEvent, around: _OpenEvent) -> None:
        """Take a child's time from the event around it, and the gap before it where that is somebody else's."""
        is_node = opened.event.name.startswith(_BACKWARD)
        gap = opened.event.start - around.reached
        if is_node and around.follows_node:  # between two backward nodes: the engine
            self._credit_gap(Owner("backward"), gap, around)
        elif around.owner.phase == "optimizer" and opened.owner.phase in ("forward", "backward"):
            self._credit_gap(Owner("other"), gap, around)  # a closure of the optimizer that runs the whole step
        around.children_ns += opened.end - opened.event.start
        around.reached = opened.end
        around.follows_node = is_node or (opened.is_own and around.follows_node)

    def _credit_gap(self, owner: Owner, gap: int, around: _OpenEvent) -> None:
        around.children_ns += gap
        if around.step is not None:
            self._credit(owner, gap, around.step)
            self.times.outside_operators += gap

    def _close_until(self, now: int | None) -> None:
        while self._stack and (now is None or self._stack[-1].end <= now):
            self._close(self._stack.pop())

    def _close(self, opened: _OpenEvent) -> None:
        """Credit an event that has ended with the time in which nothing inside it was open."""
        if opened.step is None:
            return
        own = opened.end - opened.event.start - opened.children_ns
        self._credit(opened.owner, own, opened.step)
        if opened.is_own:
            return
        if _is_operator(opened.event.name):
            operator = self.times.operators[opened.event.name]
            operator.calls += 1
            operator.host_self += own
            operator.short_calls += own < _SHORT_NS
        elif opened.owner.phase != "data":
            self.times.outside_operators += own

    def _credit(self, owner: Owner, nanoseconds: int, step: int) -> None:
        self.times.host[owner] += nanoseconds
        self.times.steps[step][owner.phase] += nanoseconds

    def _open_step(self, opened: _OpenEvent, step: int) -> None:
        first = self.times.span[0] if self.times.steps else opened.event.start
        self.times.span = (first, opened.end)
        self.times.steps[step] = dict.fromkeys(TRACED_PHASES, 0)
        self.times.step_spans.append(StepSpan(step, opened.event.start, opened.end))

    def _owner(self, event: Event) -> Owner:
        """Whose time an event is, and, for a forward operator, whose the backward node that it makes will be."""
        name = event.name
        if name.startswith(_BACKWARD):
            return self._node_owner(event)
        inherited = self._stack[-1].owner if self._stack else Owner("other")
        if name in self._modules:
            return self._module_owner(name, inherited)
        if name == DATA_WAIT:
            return self._owner_of_wait
        if name.startswith(_LOADER):
            return Owner("data")
        if name.startswith(_OPTIMIZER):
            return Owner("optimizer")
        if name.startswith(STEP) or name == STEP_BODY:
            return Owner("other")
        if name.startswith(_COLLECTIVE):
            return Owner(inherited.phase)  # a bucket of gradients is not of the module that happened to fill it
        if event.sequence < 0 or event.forward_thread:
            return inherited
        outside = inherited.phase in ("other", "optimizer")  # as the loss, or the loss in the optimizer's closure
        owner = Owner("forward") if outside else inherited
        # Every operator shows the number that the next node will get. The last one to show it is the one that made it.
        self._node_owners[event.thread, event.sequence] = owner
        return owner

    def _module_owner(self, range_name: str, inherited: Owner) -> Owner:
        if inherited.phase != "backward":
            return Owner("forward", (*inherited.path, range_name))
        # A forward inside the backward is checkpointing that recomputes: whichever module's node needed the values
        # first, the work belongs to this module and to those that contain it.
        name = self._modules[range_name].name
        outer = [other for other in inherited.path if _contains(self._modules[other].name, name)]
        return Owner("backward", (*outer, range_name))

    def _node_owner(self, event: Event) -> Owner:
        """The module whose forward made a node; for the accumulation of a gradient, that of the node before it."""
        if not event.name.startswith(_ACCUMULATE):
            made_by = self._node_owners.get((event.forward_thread, event.sequence), Owner("forward"))
            self._last_node = Owner("backward", made_by.path)
        return self._last_node


class _OpenEvent:
    """An event that has begun and not ended at the instant that the pass has reached."""

    __slots__ = ("children_ns", "end", "event", "follows_node", "is_own", "owner", "reached", "step")

    def __init__(self, event: Event, end: int, owner: Owner, step: int | None, *, is_own: bool) -> None:
        self.event, self.end, self.owner, self.step, self.is_own = event, end, owner, step, is_own
        self.children_ns = 0
        self.reached = event.start  # where its last child ended
        self.follows_node = False  # whether that child was a backward node


def _is_operator(name: str) -> bool:
    """Whether an event's name is that of an operator, such as `aten::mm`, and not that of a range."""
    if "::" in name:
        return not name.startswith(("autograd::", "torch::autograd::"))
    return name == "record_param_comms"


def _is_loader(name: str) -> bool:
    return name.startswith(_LOADER) and name != DATA_WAIT


def _contains(outer: str, name: str) -> bool:
    return name != outer and (outer == "" or name.startswith(f"{outer}."))
