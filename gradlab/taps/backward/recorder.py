"""The recorder: what the hooks of a training step talk to. It knows the forward passes and backward passes of the step.

What counts, decided here once:

- A **pass** is one forward of the model with gradients on. Where the model is never called as a whole, a pass begins
  with the first part that is called with gradients on, and ends with the next backward. A part that is called without
  gradients, outside of any forward that counts, is an evaluation and counts nowhere (`modules.scope`).
- A **task** is one run of the autograd engine. It counts if it changed a gradient of the watched parameters, so that
  `autograd.grad` probes leave no trace. A pass counts if a task that counts reached it, and passes of one optimizer
  step are combined into the numbers of their concatenated batch. A pass that no backward reaches is void.
- A **nested backward** (a backward that is run by a hook, or by the backward of an autograd function) is a part of the
  outermost one: gradients of parameters are read when that has ended. Where the outermost one is noticed only after
  backwards inside it have ended, each of these counts by itself, and so does the outermost one.
- A forward inside a backward either **repeats** an earlier one (activation checkpointing, `segments`) and belongs to
  that one's pass, or is a pass of its own: the chunks that GradCache runs in a hook. What these repeat of a forward
  without gradients takes the place of what was recorded there.
- Passes may be many. One lives as long as its graph, which may still be reached; when the graph is gone it is either
  void, or its slots are sent to the host at once and combined there (`finished_passes`). So memory is bounded where
  forward and backward take turns, and where forwards are left alone; where one backward goes through all of them it
  grows with the graph itself, by a small part of it.

The recorder holds slots and names, never a tensor of the graph (but those that a tap keeps on request).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from gradlab.autograd_engine import NO_TASK, current_node, task_id, when_backward_ends
from gradlab.hooks.compiled_step import untraced
from gradlab.hooks.interpreter import in_symbolic_trace, must_not_record, own_ops
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.sites.leaves import first_differentiable
from gradlab.sites.names import is_input, without_call_number
from gradlab.taps.backward.hooks import GradHook, Pass
from gradlab.taps.backward.segments import RunBy, Segment, SegmentHook, makes_a_graph, run_by
from gradlab.taps.buffer.finished_passes import FinishedPasses
from gradlab.taps.buffer.layout import NORM_IN_ONE, Entry
from gradlab.taps.buffer.rows import Row
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.plan import Plan, Target

_MANY = 256
"""Beyond so many passes of a step it is looked after which of them are over, and which rows can be put away."""
_MOST_PROBES = 3
"""After so many backwards in a row that changed no gradient, they are looked at more closely."""


class Here(threading.local):
    """What the forward of this thread is recorded into, in one step."""

    current: Pass | None = None
    """The pass under way."""
    ignoring = False
    """Whether the forward under way is not recorded."""


class Recorder:
    """Collects one optimizer step after another into rows, and tells when a backward pass has ended."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        on_backward_end: Callable[[], None],
        on_failure: Callable[[str, BaseException], None],
    ) -> None:
        self.use(parameters)
        self.on_backward_end = on_backward_end
        self.on_first_pass: Callable[[], None] | None = None
        self.failed = on_failure
        self.plan: Plan | None = None
        self.here = Here()
        self._forwarding: set[int] = set()
        """The threads that have begun passes in this step."""
        self.passes: list[Pass] = []
        self.open_tasks: dict[int, list[int | None] | None] = {}
        self.committed: set[int] = set()
        self._consumed: set[int] = set()
        """Backwards whose gradients an optimizer of this step has used: to throw these away voids nothing."""
        self._num_probes = 0
        self.thrown_away = 0
        """How often gradients were thrown away that no optimizer had used, since whoever reads this set it to 0."""
        self.backward_pass: Pass | None = None
        self.kept: dict[str, Tensor] = {}
        self.keeps_are_old = True
        self._segments: list[Segment] = []
        self._left: list[tuple[nn.Parameter, int]] = []
        """The versions of some gradients when the last backward of the step had ended."""
        self._row: Row | None = None
        self.finished: FinishedPasses | None = None
        """The passes of the step whose graph is gone, where that has been looked after."""
        self._first: Pass | None = None
        """The pass that writes into the row of the step."""
        self._sweep_at = _MANY
        self._inner: Pass | None = None
        """The forward under way inside a backward, where that is a pass of its own."""
        self._inner_place: tuple[int, int] | None = None
        self._sentinels: list[RemovableHandle] = []
        self._shown_by_output = False
        self.leaf_hooks = LeafHooks()

    def use(
        self, parameters: Sequence[nn.Parameter], grad_of: Callable[[nn.Parameter], Any] = attrgetter("grad")
    ) -> None:
        """These are the model's parameters now, and this is how their gradients are found (`sharded`)."""
        self.parameters = parameters
        self._grad_of = grad_of
        self._no_gradients: list[int | None] = [None] * len(parameters)
        self._sample = parameters[:: max(1, len(parameters) // 16)]

    @property
    def device(self) -> torch.device:
        """Where the model is now."""
        return self.parameters[0].device if self.parameters else torch.device("cpu")

    def start(self, plan: Plan | None) -> None:
        """A new optimizer step begins, under this plan (None: nothing is due)."""
        if self.plan is not None:
            rows = {row for one in self.passes for row in (one.row, *one.task_rows.values())}
            if self._row is not None:
                rows.add(self._row)
            self.plan.row_pool.give_back(list(rows))
        self.plan, self._row, self.finished = plan, None, None
        self.leaf_hooks.remove()
        self.here = Here()  # for all threads: what one of them has begun belongs to the step before
        self.backward_pass = self._first = None
        self.passes = []
        self._sweep_at = _MANY
        self._forwarding.clear()
        self.open_tasks.clear()
        self._forget_reruns()
        self._left = []
        self.committed.clear()
        self._consumed.clear()
        self.keeps_are_old = True

    def begin_pass(self, *, has_graph: bool = False) -> Pass | None:
        """A forward pass begins. None where it is not to be recorded: without gradients, or inside a probe.

        Args:
            has_graph: what runs without gradients is inside of an autograd function, which makes a graph of it.
        """
        here = self.here
        if self.plan is None or not (has_graph or torch.is_grad_enabled()) or must_not_record() or in_symbolic_trace():
            here.current = None
            return None
        if self.on_first_pass is not None and not self.passes:
            self.on_first_pass()
        self._forwarding.add(threading.get_ident())
        if len(self._forwarding) == 1:  # else another thread may be in its backward
            self.open_tasks.clear()  # a backward that raised never closed its own
            self._forget_reruns()
        here.current = None
        here.current = self._new_pass()
        return here.current

    def _new_pass(self) -> Pass:
        if self.keeps_are_old:
            self.kept.clear()
            self.keeps_are_old = False
        with own_ops():
            if len(self.passes) >= self._sweep_at:
                self._sweep()
            if len(self.passes) >= _MANY:
                self._put_away(self.passes[-1])
            row = self.step_row() if self._first is None else self._extra_row()
        one = Pass(row)
        if self._first is None:
            self._first = one
        self.passes.append(one)
        return one

    def _sweep(self) -> None:
        """Let go of the passes whose graph is gone: no backward will reach them any more.

        The hooks in a graph hold their pass. So those of which nothing is left, once nothing here holds them, are over.
        """
        assert self.plan is not None
        is_open = self.open_tasks.keys()
        kept = [one for one in self.passes if one is self._first or is_open & one.task_rows.keys()]
        known = set(map(id, kept))
        others = [(weakref.ref(one), one.row, one.task_rows) for one in self.passes if id(one) not in known]
        self.passes, over = [], list[Row]()
        for ref, row, task_rows in others:
            if (one := ref()) is not None:
                kept.append(one)
            elif row is not self._row:
                if last := self._last_counted(task_rows):
                    over.append(_with_gradients_of(row, last, self.plan))
                self.plan.row_pool.give_back([one for one in {row, *task_rows.values()} if one not in over])
        self.passes = sorted(kept, key=attrgetter("order"))
        self._sweep_at = max(_MANY, 2 * len(kept))
        if over:
            if self.finished is None:
                self.finished = FinishedPasses(self.plan.layout)
            self.finished.add(HostCopy(over))
            self.plan.row_pool.give_back(over)

    def _put_away(self, one: Pass) -> None:
        """A pass whose forward has ended, or whose backward has gone on to another, may be one of very many."""
        for row in (one.row, one.task_row):
            if row is not self._row:
                row.pack()
        one.task = NO_TASK

    def record(self, target: Target, tensor: Tensor, into: Pass) -> None:
        """A watched tensor comes by in the forward: reduce its value now, its gradient when it comes."""
        if target.keep or tensor.dtype not in NORM_IN_ONE:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                if self._is_by_the_way(target.site):
                    return
                raise TypeError(f"its tensor is {tensor.dtype}; only floating-point tensors have norms and gradients")
            if target.keep:
                self._keep(target.site, tensor)
        if target.value is not None:
            try:
                into.row.write(target.value, tensor)
            except Exception as error:
                self.entry_failed(target.value, error)
        if tensor.requires_grad:
            GradHook(self, target.grad, into, tensor)
        if not torch.is_grad_enabled():
            hooked = tensor.requires_grad
            into.unhooked.setdefault(without_call_number(target.site), []).append(None if hooked else target)

    def entry_failed(self, entry: Entry, error: Exception) -> None:
        """A tensor cannot be read, or some of its stats cannot: these alone are left out from now on."""
        if self.plan is not None:
            self.plan.leave_out(entry, error)
        self.failed(entry.site, error)

    def gradient_failed(self, entries: Sequence[Entry], row: Row, gradient: Tensor) -> None:
        """The gradient of some sites could not be read for all of them: find out for which."""
        for entry in entries:
            try:
                row.write_now(entry, gradient)
            except Exception as error:
                self.entry_failed(entry, error)

    def _keep(self, site: str, tensor: Tensor) -> None:
        if tensor.requires_grad and tensor.grad_fn is not None:
            tensor.retain_grad()
        self.kept[site] = tensor

    def _is_by_the_way(self, site: str) -> bool:
        """Whether integers came along: tokens among inputs, the indices of a sort, not chosen by their own name."""
        patterns = [pattern for rule in self.plan.rules for pattern in rule.patterns] if self.plan is not None else []
        return ("[" in site or is_input(site)) and site not in patterns

    def recomputed(self, site: str, tensor: Tensor, segment: Segment) -> None:
        """A watched tensor again, recomputed in the backward: its gradient is wanted if it had no graph before.

        That is so under reentrant checkpointing, whose first forward runs without a graph.
        """
        base = without_call_number(site)
        if segment.reentrant and segment.of_pass.unhooked.get(base):
            calls = segment.calls.setdefault(base, [])
            if tensor.requires_grad:
                SegmentHook(self, segment, base, len(calls), tensor)
            calls.append(torch.is_grad_enabled())

    def inside_backward(self, *, whole: bool = False) -> Segment | Pass | None:
        """What a call of a module inside a backward belongs to: a segment that is run again, or a pass of its own.

        Args:
            whole: it is the model as a whole that is called.
        """
        if self.plan is None:
            return None
        node = current_node()
        place = (task_id(), node._sequence_nr() if node is not None else NO_TASK)
        if self._segments and self._segments[-1].key == place:
            return self._segments[-1]
        if self._inner_place == place:
            self._end_segments(place[0])
        else:
            by = run_by()
            if by is not RunBy.HOOK and (segment := self._segment(place, by)) is not None:
                return segment
            if by is RunBy.CHECKPOINT:
                return None
            self._inner, self._inner_place = None, place
        if self._inner is None or whole:
            self._inner = self._begin_inner()
        return self._inner

    def _begin_inner(self) -> Pass | None:
        """A forward begins that a hook runs: it counts with the backward that is under way."""
        if must_not_record() or not makes_a_graph():
            return None
        task = task_id()
        if task not in self.open_tasks:
            self._open(task)
        one = self._new_pass()
        one.inside = next(iter(self.open_tasks))
        return one

    def end_inner(self, output: Any) -> None:
        """A forward of the whole model inside a backward has ended."""
        if self._inner is not None and output is not None:
            self._inner.row.flush()
            if (tensor := first_differentiable(output)) is not None:
                self.watch_output(tensor, self._inner)

    def _segment(self, place: tuple[int, int], by: RunBy) -> Segment | None:
        """The checkpointed segment that is being recomputed: that of the autograd node that runs the forward again.

        None where nothing is known that would be run again.
        """
        self._end_segments(place[0])
        if self._segments:
            self._segments[-1].claim()
            of_pass = self._segments[-1].of_pass
        elif self.passes:
            of_pass = self._pass_of(place[1])
            if by is RunBy.FUNCTION and not of_pass.unhooked:
                return None
        else:
            return None
        # The non-reentrant kind recomputes where an op asks for its saved tensors, and has gradients already.
        self._segments.append(Segment(place, of_pass, reentrant=by is RunBy.FUNCTION))
        return self._segments[-1]

    def _end_segments(self, task: int) -> None:
        """A node of this task runs a forward: segments that came before it, and all in tasks inside it, are over."""
        while any(one.key[0] >= task for one in self._segments):
            self._segments.pop().end()

    def _forget_reruns(self) -> None:
        self._segments.clear()
        self._inner = self._inner_place = None

    def _pass_of(self, number: int) -> Pass:
        """The pass in which a node was made, by its sequence number."""
        return next((one for one in reversed(self.passes) if one.first_node <= number), self.passes[0])

    def watch_output(self, output: Tensor, of_pass: Pass) -> None:
        """Mark a tensor whose gradient shows that a backward reached this pass."""
        if output.requires_grad:
            GradHook(self, None, of_pass, output)
            self._shown_by_output = True

    def watch_parameters(self) -> None:
        """Also notice backward passes by the parameters that they reach, until the model's own output shows them.

        That is for code that calls parts of a model and never the whole, where no output of the model exists.
        """
        self._shown_by_output = False
        if not self._sentinels:
            self._sentinels = [
                p.register_post_accumulate_grad_hook(self._accumulated)
                for p in self.parameters
                if p.requires_grad and not is_lazy(p)
            ]

    def ignore_parameters(self) -> None:
        """No longer notice backward passes by parameters."""
        for handle in self._sentinels:
            handle.remove()
        self._sentinels = []

    def rescale(self, factor: Tensor) -> None:
        """Backwards that no optimizer has used yet carry another loss scale than the first ones of the step."""
        targets = self.plan.targets.values() if self.plan is not None else ()
        entries = [target.grad for target in targets if target is not None and target.grad is not None]
        for one in self.passes:
            for task, row in one.task_rows.items():
                if task in self.committed and task not in self._consumed:
                    row.rescale(entries, factor)

    def optimizer_stepped(self) -> None:
        """An optimizer has used the gradients that there are; others may follow in this step."""
        self._consumed |= self.committed
        if self.finished is not None:
            self.finished.mark_used()

    def _accumulated(self, parameter: nn.Parameter) -> None:
        """A gradient has arrived at a parameter: if that is the first sign of a backward, outputs do not show all."""
        with untraced():  # a backward within a compiled function is no part of its graph, and Dynamo traces its hooks
            task = task_id()
            if self.plan is not None and task not in self.open_tasks and not must_not_record():
                self._open(task, parameter)
                self.open_tasks[task] = None
                self._shown_by_output = False

    def notice_backward(self) -> None:
        """The backward under way is one of the step's own, whatever its gradients look like at its end."""
        task = task_id()
        if self.plan is not None:
            if task not in self.open_tasks:
                self._open(task)
            self.open_tasks[next(iter(self.open_tasks))] = None

    def enter_task(self, task: int, of_pass: Pass) -> None:
        """The first gradient of a backward arrives at a pass: choose the row to write to."""
        if task not in self.open_tasks:
            self._open(task)
        outermost = next(iter(self.open_tasks))
        left, self.backward_pass = self.backward_pass, of_pass
        if len(self.passes) > _MANY and left is not None and left is not of_pass:
            self._put_away(left)
        if outermost not in of_pass.task_rows:
            fresh = not of_pass.task_rows
            of_pass.task_rows[outermost] = of_pass.row if fresh else self._extra_row()
        of_pass.task, of_pass.task_row = task, of_pass.task_rows[outermost]
        of_pass.task_row.unpack()

    def _extra_row(self) -> Row:
        """A row of its own for a pass or a further backward, where anything is written there."""
        assert self.plan is not None
        return self.plan.row_pool.take(self.device) if self.plan.writes_in_passes else self.step_row()

    def _open(self, task: int, noticed_by: nn.Parameter | None = None) -> None:
        grads = list(map(self._grad_of, self.parameters))
        if not self.open_tasks and self._were_thrown_away(grads, noticed_by):
            self._abandon_committed()
        some = any(grad is not None for grad in grads)
        self.open_tasks[task] = [g if g is None else g._version for g in grads] if some else self._no_gradients
        if self.committed and max(self.committed) > task:
            self.open_tasks[task] = None  # it began before one that has ended: that was a part of it
        # Queued twice over, so that it runs after the callbacks with which DDP and FSDP finish their reductions.
        when_backward_ends(lambda: when_backward_ends(lambda: self._close(task)))

    def _close(self, task: int) -> None:
        try:
            with untraced(), own_ops():
                self._task_ended(task)
        except Exception as error:
            self.failed("", error)

    def _task_ended(self, task: int) -> None:
        if task not in self.open_tasks:
            return
        before = self.open_tasks.pop(task)
        self._end_inner_of(task)
        if self.open_tasks:
            self._end_segments(task)
            return
        self._forget_reruns()
        if before is not None and not self._has_changed_since(before):
            self._discard(task)
            self._num_probes += 1
            if self._num_probes == _MOST_PROBES:  # gradients may be used up, and gone, before a backward ends
                self.watch_parameters()
            return
        self._num_probes = 0
        self.committed.add(task)
        self._left = [(p, grad._version) for p in self._sample if (grad := self._grad_of(p)) is not None]
        self._forget_repeated(task)
        for one in self.passes:  # not `here`: on a GPU this may be a thread of the engine
            if task in one.task_rows or len(self._forwarding) <= 1:
                one.is_over = True
        if self._shown_by_output:
            self.ignore_parameters()
        self.on_backward_end()

    def are_gone(self) -> bool:
        """Whether the backward that has just ended has left no gradient at all."""
        return not self._left and not any(self._grad_of(p) is not None for p in self.parameters)

    def _end_inner_of(self, task: int) -> None:
        """A backward has ended: the pass inside a backward that it went through is over."""
        if self._inner is not None and (self._inner.task == task or self._inner.inside == task):
            self._inner = None

    def _forget_repeated(self, task: int) -> None:
        """What a pass has recorded without gradients, and a hook of its backward has run again with them, is void.

        The later one counts, as it has both values and gradients.
        """
        inner = [one for one in self.passes if one.inside == task and task in one.task_rows]
        if not inner or self.plan is None:
            return
        bases = {without_call_number(entry.site) for one in inner for entry in one.row.written()}
        for one in self.passes:
            if one.inside == NO_TASK and task in one.task_rows:
                void = [target for base in bases & one.unhooked.keys() for target in one.unhooked.pop(base)]
                one.row.forget_entries({t.value for t in void if t is not None and t.value is not None})

    def _were_thrown_away(self, grads: Sequence[Tensor | None], noticed_by: nn.Parameter | None) -> bool:
        """Whether the gradients of the backwards before are gone: set to None, or all written to in place since then.

        The latter is what `zero_grad(set_to_none=False)` does, as far as some of them tell. A parameter that noticed
        the backward has its gradient already: only what it has been added to tells that it was there before.
        """
        if self.committed <= self._consumed:
            return False
        before = {id(p): version for p, version in self._left}
        there = sum(grad is not None for grad in grads)
        if noticed_by is not None:
            there -= not _was_added_to(self._grad_of(noticed_by), before.get(id(noticed_by)))
        same = any((grad := self._grad_of(p)) is not None and grad._version == version for p, version in self._left)
        return there <= 0 or (bool(self._left) and not same and there > (noticed_by is not None))

    def _has_changed_since(self, before: list[int | None]) -> bool:
        """Whether the gradient of any parameter has changed; the first one tells, nearly always."""
        for p, version in zip(self.parameters, before, strict=True):
            grad = self._grad_of(p)
            if (None if grad is None else grad._version) != version:
                return True
        return False

    def _abandon_committed(self) -> None:
        """Gradients were thrown away since the last backward (a skipped step): what was recorded for them is void."""
        void = self.committed - self._consumed
        if void and self.plan is not None:
            self._drop([one for one in self.passes if void & one.task_rows.keys()])
            if self.finished is not None:
                self.finished.forget_unused()
            self.committed -= void
            self.thrown_away += 1
            self._left = []

    def _drop(self, passes: Sequence[Pass]) -> None:
        """Some passes of the step count no more."""
        assert self.plan is not None
        void = set(map(id, passes))
        self.passes = [one for one in self.passes if id(one) not in void]
        for one in passes:
            if one is self._first:
                self._first = None
                self.plan.forget_tensors(one.row)
            elif one.row is not self._row:
                self.plan.row_pool.give_back([one.row])

    def _discard(self, task: int) -> None:
        """A task that changed no gradient was a probe: forget the gradients that it wrote."""
        assert self.plan is not None
        for one in self.passes:
            row = one.task_rows.pop(task, None)
            if row is one.row:
                self.plan.forget_tensors(row, only_gradients=True)
            if row is not None:
                one.task = NO_TASK

    def rows(self) -> list[Row]:
        """The rows of the step that count: its own, and those of further passes that a backward reached.

        Where several backwards ran through one pass, the gradients of tensors are those of the last.
        """
        rows = [self.step_row()]
        void = []
        for one in self.passes:
            last = self._last_counted(one.task_rows)
            if last is None:
                void.append(one)
            elif self.plan is not None:
                row = _with_gradients_of(one.row, last, self.plan)
                if row is not self._row:
                    rows.append(row)
        if void:
            self._drop(void)
        return rows

    def _last_counted(self, task_rows: dict[int, Row]) -> Row | None:
        """The row of the last backward through a pass that counts; None where there is none."""
        return next((task_rows[task] for task in reversed(task_rows) if task in self.committed), None)

    def backward_row(self) -> Row:
        """The row of the pass whose backward is under way."""
        return self.backward_pass.task_row if self.backward_pass is not None else self.step_row()

    def step_row(self) -> Row:
        """The row of the step: the parameters' entries, and those of its first pass."""
        assert self.plan is not None
        if self._row is None:
            self._row = self.plan.row_pool.take(self.device)
        return self._row


def _with_gradients_of(own: Row, last: Row, plan: Plan) -> Row:
    """A pass's own row, with the gradient slots of a later backward through the same graph copied over."""
    if last is not own:
        for row in (last, own):
            row.flush()
            row.unpack()
        for target in plan.targets.values():
            entry = target.grad if target is not None else None
            if entry is not None and entry.index < len(last.numel) and last.numel[entry.index]:
                for slot in range(entry.start, entry.start + sum(entry.widths)):
                    own.views[slot].copy_(last.views[slot])
                own.numel[entry.index] = last.numel[entry.index]
    return own


def _was_added_to(gradient: Tensor | None, version: Any) -> bool:
    """Whether a gradient is one that has been there, with a further one added to it in place."""
    return gradient is not None and isinstance(version, int) and gradient._version > version
