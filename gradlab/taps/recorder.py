"""The recorder: what the hooks of a training step talk to. It knows the forward passes and backward passes of the step.

A **pass** is one forward of the model with gradients on. A **task** is one run of the autograd engine; it counts only
if it changed a gradient of the watched parameters, so that `autograd.grad` probes leave no trace. Passes of one
optimizer step are combined into the numbers of their concatenated batch. The recorder holds slots and names, never a
tensor of the graph (but those that a tap keeps on request).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from gradlab.taps.gradhooks import NO_TASK, GradHook, Pass, task_id
from gradlab.taps.interpreter import in_symbolic_trace, looks_away, own_ops
from gradlab.taps.leaf_hooks import LeafHooks
from gradlab.taps.plan import Plan, Target
from gradlab.taps.segments import Segment, SegmentHook
from gradlab.taps.sites import is_input, leaves, without_call_number
from gradlab.taps.slots import NORM_IN_ONE, Row

_MOST_PASSES = 1024


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
        self.thrown_away = 0
        """How often gradients were thrown away that no optimizer had used, since whoever reads this set it to 0."""
        self.backward_pass: Pass | None = None
        self.kept: dict[str, Tensor] = {}
        self.keeps_are_old = True
        self._segments: list[Segment] = []
        self._left: list[tuple[nn.Parameter, int]] = []
        """The versions of some gradients when the last backward of the step had ended."""
        self._row: Row | None = None
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
            for one in self.passes:
                self.plan.rows.give_back([r for r in {one.row, *one.task_rows.values()} if r is not self._row])
            if self._row is not None:
                self.plan.rows.give_back([self._row])
        self.plan, self._row = plan, None
        self.leaf_hooks.remove()
        self.here = Here()  # for all threads: what one of them has begun belongs to the step before
        self.backward_pass = None
        self.passes = []
        self._forwarding.clear()
        self.open_tasks.clear()
        self._segments.clear()
        self._left = []
        self.committed.clear()
        self._consumed.clear()
        self.keeps_are_old = True

    def begin_pass(self) -> Pass | None:
        """A forward pass begins. None where it is not to be recorded: without gradients, or inside a probe."""
        here = self.here
        if self.plan is None or not torch.is_grad_enabled() or looks_away() or in_symbolic_trace():
            here.current = None
            return None
        if self.on_first_pass is not None:
            first, self.on_first_pass = self.on_first_pass, None
            first()
        self._forwarding.add(threading.get_ident())
        if len(self._forwarding) == 1:  # else another thread may be in its backward
            self.open_tasks.clear()  # a backward that raised never closed its own
            self._segments.clear()
        if self.keeps_are_old:
            self.kept.clear()
            self.keeps_are_old = False
        if len(self.passes) >= _MOST_PASSES:
            self._drop([self.passes[0]])
        is_first = not any(one.row is self._row for one in self.passes)
        with own_ops():
            current = here.current = Pass(self.step_row() if is_first else self.plan.rows.take(self.device))
        self.passes.append(current)
        return current

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
            into.row.write(target.value, tensor)
        if tensor.requires_grad:
            GradHook(self, target.grad, into, tensor)
        if target.grad is not None and not torch.is_grad_enabled():
            hooked = tensor.requires_grad
            into.unhooked.setdefault(without_call_number(target.site), []).append(None if hooked else target)

    def _keep(self, site: str, tensor: Tensor) -> None:
        if tensor.requires_grad and tensor.grad_fn is not None:
            tensor.retain_grad()
        self.kept[site] = tensor

    def _is_by_the_way(self, site: str) -> bool:
        """Whether integers came along: tokens among inputs, the indices of a sort, not chosen by their own name."""
        patterns = [pattern for rule in self.plan.rules for pattern in rule.patterns] if self.plan is not None else []
        return ("[" in site or is_input(site)) and site not in patterns

    def recomputed(self, site: str, tensor: Tensor) -> None:
        """A watched tensor again, recomputed in the backward: its gradient is wanted if it had no graph before.

        That is so under reentrant checkpointing, whose first forward runs without a graph.
        """
        segment, base = self.segment(), without_call_number(site)
        if segment.reentrant and segment.of_pass.unhooked.get(base):
            calls = segment.calls.setdefault(base, [])
            if tensor.requires_grad:
                SegmentHook(self, segment, base, len(calls), tensor)
            calls.append(torch.is_grad_enabled())

    def segment(self) -> Segment:
        """The checkpointed segment that is being recomputed: that of the autograd node that runs the forward again."""
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else NO_TASK
        key = (task_id(), number)
        if not self._segments or self._segments[-1].key != key:
            self._end_segments(key[0])
            if self._segments:
                self._segments[-1].claim()
                of_pass = self._segments[-1].of_pass
            else:
                of_pass = self._pass_of(number)
            # The non-reentrant kind recomputes where an op asks for its saved tensors, and has gradients already.
            reentrant = isinstance(node, torch.autograd.function.BackwardCFunction)
            self._segments.append(Segment(key, of_pass, reentrant=reentrant))
        return self._segments[-1]

    def _end_segments(self, task: int) -> None:
        """A node of this task begins a recomputation: those that came before it, and all inside them, are over."""
        while any(one.key[0] == task for one in self._segments):
            self._segments.pop().end()

    def _pass_of(self, number: int) -> Pass:
        """The pass in which a node was made, by its sequence number."""
        made = [one for one in self.passes if one.first_node <= number]
        return made[-1] if made else self.passes[0]

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
                p.register_post_accumulate_grad_hook(self._accumulated) for p in self.parameters if p.requires_grad
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

    def _accumulated(self, parameter: Tensor) -> None:
        task = task_id()
        if self.plan is not None and task not in self.open_tasks and not looks_away():
            self._open(task)
            self.open_tasks[task] = None

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
        self.backward_pass = of_pass
        if outermost not in of_pass.task_rows:
            fresh = not of_pass.task_rows
            of_pass.task_rows[outermost] = of_pass.row if fresh else self._extra_row()
        of_pass.task, of_pass.task_row = task, of_pass.task_rows[outermost]

    def _extra_row(self) -> Row:
        assert self.plan is not None
        return self.plan.rows.take(self.device)

    def _open(self, task: int) -> None:
        grads = list(map(self._grad_of, self.parameters))
        if not self.open_tasks and self._were_thrown_away(grads):
            self._abandon_committed()
        some = any(grad is not None for grad in grads)
        self.open_tasks[task] = [g if g is None else g._version for g in grads] if some else self._no_gradients
        # Queued twice over, so that it runs after the callbacks with which DDP and FSDP finish their reductions.
        queue = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
        queue(lambda: queue(lambda: self._close(task)))

    def _close(self, task: int) -> None:
        try:
            with own_ops():
                self._task_ended(task)
        except Exception as error:
            self.failed("", error)

    def _task_ended(self, task: int) -> None:
        if task not in self.open_tasks:
            return
        before = self.open_tasks.pop(task)
        if self.open_tasks:
            return
        self._segments.clear()
        if before is not None and not self._has_changed_since(before):
            self._discard(task)
            return
        self.committed.add(task)
        self._left = [(p, grad._version) for p in self._sample if (grad := self._grad_of(p)) is not None]
        for one in self.passes:  # not `here`: on a GPU this may be a thread of the engine
            if task in one.task_rows or len(self._forwarding) <= 1:
                one.is_over = True
        if self._shown_by_output:
            self.ignore_parameters()
        self.on_backward_end()

    def _were_thrown_away(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether the gradients of the backwards before are gone: set to None, or all written to in place since then.

        The latter is what `zero_grad(set_to_none=False)` does, as far as some of them tell. A parameter that noticed
        the backward has its gradient already.
        """
        if self.committed <= self._consumed:
            return False
        noticed = bool(self._sentinels)
        there = sum(grad is not None for grad in grads)
        same = any((grad := self._grad_of(p)) is not None and grad._version == version for p, version in self._left)
        return there <= noticed or (bool(self._left) and not same and there > noticed)

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
            self.committed -= void
            self.thrown_away += 1
            self._left = []

    def _drop(self, passes: Sequence[Pass]) -> None:
        """Some passes of the step count no more."""
        assert self.plan is not None
        self.passes = [one for one in self.passes if one not in passes]
        for one in passes:
            if one.row is self._row:
                self.plan.forget_tensors(one.row)
            else:
                self.plan.rows.give_back([one.row])

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
        for one in list(self.passes):
            reached = [task for task in one.task_rows if task in self.committed]
            if not reached:
                self._drop([one])
                continue
            row = _with_gradients_of(one, one.task_rows[reached[-1]], self.plan)
            if row is not self._row and self.plan is not None and self.plan.writes_in_passes:
                rows.append(row)
        return rows

    def backward_row(self) -> Row:
        """The row of the pass whose backward is under way."""
        return self.backward_pass.task_row if self.backward_pass is not None else self.step_row()

    def step_row(self) -> Row:
        """The row of the step: the parameters' entries, and those of its first pass."""
        assert self.plan is not None
        if self._row is None:
            self._row = self.plan.rows.take(self.device)
        return self._row


def _with_gradients_of(one: Pass, last: Row, plan: Plan | None) -> Row:
    """The pass's own row, with the gradient slots of a later backward through the same graph copied over."""
    if last is not one.row and plan is not None:
        last.flush()
        one.row.flush()
        for target in plan.targets.values():
            entry = target.grad if target is not None else None
            if entry is not None and entry.index < len(last.numel) and last.numel[entry.index]:
                for slot in range(entry.start, entry.start + len(entry.parts)):
                    one.row.views[slot].copy_(last.views[slot])
                one.row.numel[entry.index] = last.numel[entry.index]
    return one.row


def first_differentiable(value: Any) -> Tensor | None:
    """The first tensor of a module's output that requires grad."""
    return next((tensor for _, tensor in leaves(value) if tensor.requires_grad), None)
