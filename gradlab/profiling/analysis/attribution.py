"""Whose time it was: every nanosecond of the recorded steps credited to a module and a phase, or to nobody.

One sweep over the raw events in order of time. At each instant the innermost open event has the time, and its owner is
its own module mark, or what it inherits from the event around it. A backward node belongs to the module whose forward
made it: the operator that made it carries the node's sequence number. So nothing is counted twice, and modules plus
unattributed time are exactly the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradlab.profiling.analysis.account import PHASES, Attribution, Call, Owner, Phase
from gradlab.profiling.analysis.events import Event
from gradlab.profiling.analysis.idle import Span, gaps
from gradlab.profiling.analysis.kernels import is_collective
from gradlab.profiling.ranges import DATA, STEP, STEP_BODY, Module

_BACKWARD = "autograd::engine::evaluate_function: "
_ACCUMULATE = _BACKWARD + "torch::autograd::AccumulateGrad"
_LOADER = "enumerate(DataLoader)#"
_OPTIMIZER = ("Optimizer.step#", "Optimizer.zero_grad#")
_ON_THE_WIRE = ("nccl:", "gloo:", "mpi:", "ucc:")
_COLLECTIVE = ("c10d::", "record_param_comms", *_ON_THE_WIRE)
_SHORT = 5_000  # nanoseconds
_DRIVER = ("cuda", "cuLaunch", "cuMem", "cuStream", "cuEvent", "hip")


def attribute(events: Iterable[Event], steps: Iterable[int], modules: Mapping[str, Module]) -> Attribution:
    """Credit the time of `steps` to modules and phases.

    Args:
        events: all events of a window.
        steps: the steps that were recorded from beginning to end.
        modules: the module behind each range's name.
    Cost: about 3 microseconds an event.
    """
    host, on_device, driver = [], [], []
    for event in events:
        if event.on_device:
            on_device.append(event)
        elif event.launched_by or event.name.startswith(_DRIVER):
            driver.append(event)
        else:
            host.append(event)
    sweep = _Sweep(steps, modules, knows_loader=any(_is_loader(event.name) for event in host))
    sweep.run(host, keep_launchers=bool(on_device))
    result = sweep.result
    collectives = [event for event in host if event.name.startswith(_ON_THE_WIRE)]
    collectives += [event for event in on_device if is_collective(event.name)]
    result.collectives = _covered(collectives, *result.span)
    if on_device:
        _read_device(result, on_device, driver, sweep)
    return result


def _read_device(result: Attribution, on_device: list[Event], driver: list[Event], sweep: _Sweep) -> None:
    for event in on_device:
        _credit_device(result, event, sweep.launchers.get(event.launched_by))
    result.device_busy = _covered(on_device, *result.span)
    others = [event for event in on_device if not is_collective(event.name)]
    result.exposed_collectives = result.device_busy - _covered(others, *result.span)
    for gap in gaps(on_device, driver, sweep.data_spans, result.span):
        launcher = sweep.launchers.get(gap.kernel.launched_by) if gap.kernel is not None else None
        path = launcher[0].path if launcher is not None else ()
        result.gaps.append((gap, path[-1] if path else None))


def _credit_device(result: Attribution, event: Event, launcher: tuple[Owner, str] | None) -> None:
    time = event.end - event.start
    if launcher is not None:
        owner, name = launcher
        result.device[owner] += time
        result.operators[name].device += time
        result.kernels[event.name].operators[name] += 1
    elif result.span[0] <= event.start < result.span[1]:
        result.device[Owner("other")] += time
    else:
        return
    result.kernels[event.name].calls += 1
    result.kernels[event.name].time += time


def is_operator(name: str) -> bool:
    """Whether an event's name is that of an operator, such as `aten::mm`, and no mark."""
    if "::" in name:
        return not name.startswith(("autograd::", "torch::autograd::"))
    return name == "record_param_comms"


def _is_loader(name: str) -> bool:
    return name.startswith(_LOADER) and name != DATA


def _contains(outer: str, name: str) -> bool:
    return name != outer and (outer == "" or name.startswith(f"{outer}."))


def _covered(events: Iterable[Event], start: int, end: int) -> int:
    """How many nanoseconds between `start` and `end` lie in at least one event."""
    covered, reached = 0, start
    for event in sorted(events, key=lambda event: event.start):
        last = min(event.end, end)
        covered += max(0, last - max(event.start, reached))
        reached = max(reached, last)
    return covered


class _Frame:
    """An event that is open during the sweep."""

    __slots__ = ("after_node", "children", "end", "event", "owner", "reached", "step")

    def __init__(self, event: Event, end: int, owner: Owner, step: int | None) -> None:
        self.event, self.end, self.owner, self.step = event, end, owner, step
        self.children = 0
        self.reached = event.start  # where its last child ended
        self.after_node = False  # whether that child was a backward node


class _Sweep:
    """The timeline of the training thread: its events, and those of the threads that run its backward."""

    def __init__(self, steps: Iterable[int], modules: Mapping[str, Module], *, knows_loader: bool) -> None:
        self.result = Attribution()
        self.launchers: dict[int, tuple[Owner, str]] = {}
        self.data_spans: list[Span] = []
        self._steps = {f"{STEP}{step}": step for step in steps}
        self._modules = modules
        # Where the loader marks its own work, the wait around it holds the rest of the loop too.
        self._waits = Owner("other") if knows_loader else Owner("data")
        self._made_by: dict[tuple[int, int], Owner] = {}
        self._last_node = Owner("backward")
        self._stack: list[_Frame] = []

    def run(self, events: list[Event], *, keep_launchers: bool) -> None:
        timeline = {event.thread for event in events if event.name in self._steps or event.name.startswith(_BACKWARD)}
        for event in sorted(events, key=lambda event: (event.start, -event.end)):
            if event.thread not in timeline:
                continue
            self._close_until(event.start)
            frame = self._push(event, self._owner(event))
            if keep_launchers and event.correlation and frame.step is not None:
                self.launchers[event.correlation] = (frame.owner, event.name)
        self._close_until(None)

    def _push(self, event: Event, owner: Owner) -> _Frame:
        around = self._stack[-1] if self._stack else None
        step = self._steps.get(event.name, around.step if around is not None else None)
        # The backward may run on a thread of its own while the training thread waits: cut to what is around it, the
        # two are one timeline.
        frame = _Frame(event, event.end if around is None else min(event.end, around.end), owner, step)
        if event.name in self._steps:
            self._open_step(frame, self._steps[event.name])
        if around is not None:
            self._nest(frame, around)
        if owner.phase != "forward":
            self._note_span(frame, around.owner.phase if around is not None else None)
        if step is not None and event.name in self._modules and owner.phase == "forward":
            self.result.calls.append(Call(event.name, event.start, frame.end))
        self._stack.append(frame)
        return frame

    def _note_span(self, frame: _Frame, around: Phase | None) -> None:
        """Keep when the host waited for data, ran a backward node or an optimizer."""
        phase, span = frame.owner.phase, (frame.event.start, frame.end)
        if phase == around:
            return
        if phase == "data":
            self.data_spans.append(span)
        elif phase == "backward":
            self.result.backward_spans.append(span)
        elif phase == "optimizer":
            self.result.optimizer_spans.append(span)

    def _nest(self, frame: _Frame, around: _Frame) -> None:
        """Take a child's time from the event around it, and the gap before it where that is somebody else's."""
        is_node = frame.event.name.startswith(_BACKWARD)
        gap = frame.event.start - around.reached
        if is_node and around.after_node:  # between two backward nodes: the engine
            self._credit_gap(Owner("backward"), gap, around)
        elif around.owner.phase == "optimizer" and frame.owner.phase in ("forward", "backward"):
            self._credit_gap(Owner("other"), gap, around)  # a closure of the optimizer that runs the whole step
        around.children += frame.end - frame.event.start
        around.reached, around.after_node = frame.end, is_node

    def _credit_gap(self, owner: Owner, gap: int, around: _Frame) -> None:
        around.children += gap
        if around.step is not None:
            self._credit(owner, gap, around.step)
            self.result.outside_operators += gap

    def _close_until(self, now: int | None) -> None:
        while self._stack and (now is None or self._stack[-1].end <= now):
            self._close(self._stack.pop())

    def _close(self, frame: _Frame) -> None:
        if frame.step is None:
            return
        own = frame.end - frame.event.start - frame.children
        self._credit(frame.owner, own, frame.step)
        if is_operator(frame.event.name):
            operator = self.result.operators[frame.event.name]
            operator.calls += 1
            operator.host_self += own
            operator.short_calls += own < _SHORT
        elif frame.owner.phase != "data":
            self.result.outside_operators += own

    def _credit(self, owner: Owner, nanoseconds: int, step: int) -> None:
        self.result.host[owner] += nanoseconds
        self.result.steps[step][owner.phase] += nanoseconds

    def _open_step(self, frame: _Frame, step: int) -> None:
        first = self.result.span[0] if self.result.steps else frame.event.start
        self.result.span = (first, frame.end)
        self.result.steps[step] = dict.fromkeys(PHASES, 0)
        self.result.step_spans.append((step, frame.event.start, frame.end))

    def _owner(self, event: Event) -> Owner:
        """Whose time an event is, and, for a forward operator, whose the backward node that it makes will be."""
        name = event.name
        if name.startswith(_BACKWARD):
            return self._node_owner(event)
        inherited = self._stack[-1].owner if self._stack else Owner("other")
        if name in self._modules:
            return self._module_owner(name, inherited)
        if name == DATA:
            return self._waits
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
        self._made_by[event.thread, event.sequence] = owner
        return owner

    def _module_owner(self, mark: str, inherited: Owner) -> Owner:
        if inherited.phase != "backward":
            return Owner("forward", (*inherited.path, mark))
        # A forward inside the backward is checkpointing that recomputes: whichever module's node needed the values
        # first, the work belongs to this module and to those that contain it.
        name = self._modules[mark].name
        outer = [other for other in inherited.path if _contains(self._modules[other].name, name)]
        return Owner("backward", (*outer, mark))

    def _node_owner(self, event: Event) -> Owner:
        """The module whose forward made a node; for the accumulation of a gradient, that of the node before it."""
        if not event.name.startswith(_ACCUMULATE):
            made_by = self._made_by.get((event.forward_thread, event.sequence), Owner("forward"))
            self._last_node = Owner("backward", made_by.path)
        return self._last_node
