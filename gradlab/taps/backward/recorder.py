"""The recorder: what the hooks of a training step call, in the forward and in the backward.

What counts, decided here once:

- A **pass** is one forward of the model with gradients on (`passes`). Where the model is never called as a whole, a
  pass begins with the first part that is called with gradients on, and ends with the next backward. A part that is
  called without gradients, outside of any forward that counts, is an evaluation and counts nowhere (`forward.modules`).
- A **task** is one run of the autograd engine; it counts if it changed a gradient of a parameter (`tasks`).
- A pass counts if a task that counts reached it, and passes of one optimizer step are combined into the numbers of
  their concatenated batch. A pass that no backward reaches is void.
- A forward inside a backward either repeats an earlier one and belongs to that one's pass, or is a pass of its own
  (`reruns`).

The recorder holds slots and names, never a tensor of the graph (but those that a tap keeps on request).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from gradlab.autograd_engine import task_id, when_backward_ends
from gradlab.hooks.compiled_step import untraced
from gradlab.hooks.interpreter import in_symbolic_trace, must_not_record, own_ops, without_torch_function
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.sites.leaves import first_differentiable
from gradlab.sites.names import is_input, without_call_number
from gradlab.taps.backward.hooks import GradHook
from gradlab.taps.backward.passes import Pass, Passes
from gradlab.taps.backward.reruns import Reruns, makes_a_graph
from gradlab.taps.backward.segments import Segment, SegmentHook
from gradlab.taps.backward.tasks import Ended, Tasks
from gradlab.taps.buffer.finished_passes import FinishedPasses
from gradlab.taps.buffer.layout import NORM_IN_ONE, Entry
from gradlab.taps.buffer.rows import Row
from gradlab.taps.plan import Plan, Target

_MOST_PROBES = 3
"""After so many backwards in a row that changed no gradient, they are noticed by parameters too."""


class ThreadForward(threading.local):
    """What the forward of this thread is recorded into, in one step."""

    current: Pass | None = None
    """The pass under way."""
    ignoring = False
    """Whether the forward under way is not recorded."""


class Recorder:
    """Collects one optimizer step after another into rows, and reports the end of each backward.

    Args:
        on_backward_end: called when a backward that counts has ended.
        on_failure: called with a site ("" for all) and the error of its tap.
    """

    def __init__(self, on_backward_end: Callable[[], None], on_failure: Callable[[str, BaseException], None]) -> None:
        self.failed = on_failure
        self.plan: Plan | None = None
        self.passes = Passes()
        self.tasks = Tasks()
        self.thread_forward = ThreadForward()
        self.kept: dict[str, Tensor] = {}
        """The tensors that taps keep, by site."""
        self.leaf_hooks = LeafHooks()
        self._reruns = Reruns()
        self._backward_ended = on_backward_end
        self._first_pass_begins: Callable[[], None] | None = None
        self._forwarding: set[int] = set()
        """The threads that have begun passes in this step."""
        self._pass_in_backward: Pass | None = None
        """The pass that a gradient has arrived at last."""
        self._kept_are_old = True
        """Whether `kept` is of an earlier step."""
        self._num_probes = 0
        """How many backwards in a row have changed no gradient."""
        self._sentinels: list[RemovableHandle] = []
        """Hooks on parameters that notice backwards."""
        self._shown_by_output = False
        """Whether an output of the model has a hook that notices its backward."""

    def use(
        self, parameters: Sequence[nn.Parameter], gradient_of: Callable[[nn.Parameter], Any] = attrgetter("grad")
    ) -> None:
        """These are the model's parameters now, and this is how their gradients are found (`sharded`)."""
        self.passes.parameters = parameters
        self.tasks.use(parameters, gradient_of)

    def call_at_first_pass(self, call: Callable[[], None] | None) -> None:
        """Have `call` called before the first pass of each step, from now on; None for nothing."""
        self._first_pass_begins = call

    def start(self, plan: Plan | None) -> None:
        """A new optimizer step begins, under this plan (None: nothing is due)."""
        self.plan = plan
        self.passes.start(plan)
        self.tasks.start()
        self.leaf_hooks.remove()
        self.thread_forward = ThreadForward()  # for all threads: what one has begun belongs to the step before
        self._pass_in_backward = None
        self._forwarding.clear()
        self._reruns.forget()
        self._kept_are_old = True

    # In the forward.

    def begin_forward(self) -> None:
        """The model as a whole is called: a pass begins, or what follows is not recorded."""
        if self.begin_pass() is None:
            self.thread_forward.ignoring = True

    def end_forward(self, output: Any) -> None:
        """It returns `output`, or raises (None): a hook on its output will notice the backward."""
        of_thread = self.thread_forward
        current = of_thread.current
        if of_thread.ignoring:
            of_thread.ignoring = False
        elif output is not None and current is not None:
            self._watch_output(output, current)

    def begin_pass(self, *, has_graph: bool = False) -> Pass | None:
        """A forward pass begins. None where it is not to be recorded: without gradients, or inside a probe.

        Args:
            has_graph: what runs without gradients is inside of an autograd function, which makes a graph of it.
        """
        of_thread = self.thread_forward
        if self.plan is None or not (has_graph or torch.is_grad_enabled()) or must_not_record() or in_symbolic_trace():
            of_thread.current = None
            return None
        if self._first_pass_begins is not None and not self.passes:
            self._first_pass_begins()
        self._forwarding.add(threading.get_ident())
        if len(self._forwarding) == 1:  # else another thread may be in its backward
            self.tasks.forget_open()
            self._reruns.forget()
        of_thread.current = None
        of_thread.current = self._new_pass()
        return of_thread.current

    def _new_pass(self) -> Pass:
        if self._kept_are_old:
            self.kept.clear()
            self._kept_are_old = False
        with own_ops():
            return self.passes.new(self.tasks.open, self.tasks.committed)

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
                self._entry_failed(target.value, error)
        if tensor.requires_grad:
            GradHook(self, target.grad, into, tensor)
        if not torch.is_grad_enabled():
            hooked = tensor.requires_grad
            into.unhooked.setdefault(without_call_number(target.site), []).append(None if hooked else target)

    def _keep(self, site: str, tensor: Tensor) -> None:
        if tensor.requires_grad and tensor.grad_fn is not None:
            tensor.retain_grad()
        self.kept[site] = tensor

    def forget_kept(self) -> None:
        """Let go of the tensors that taps keep."""
        self.kept.clear()

    def _is_by_the_way(self, site: str) -> bool:
        """Whether integers came along: tokens among inputs, the indices of a sort, not chosen by their own name."""
        patterns = [pattern for rule in self.plan.rules for pattern in rule.patterns] if self.plan is not None else []
        return ("[" in site or is_input(site)) and site not in patterns

    def _watch_output(self, output: Any, of_pass: Pass) -> None:
        """Put a hook on an output of the model whose gradient shows that a backward reached this pass."""
        of_pass.row.flush()
        with without_torch_function():
            tensor = first_differentiable(output)
            if tensor is not None and tensor.requires_grad:
                GradHook(self, None, of_pass, tensor)
                self._shown_by_output = True

    # In a forward inside a backward.

    def inside_backward(self, *, whole: bool = False) -> Segment | Pass | None:
        """What a call of a module inside a backward belongs to: a segment that is run again, or a pass of its own.

        Args:
            whole: it is the model as a whole that is called.
        """
        return None if self.plan is None else self._reruns.find(self.passes, self._begin_inner, whole=whole)

    def _begin_inner(self) -> Pass | None:
        """A forward begins that a hook runs: it counts with the backward that is under way."""
        if must_not_record() or not makes_a_graph():
            return None
        task = task_id()
        if not self.tasks.is_open(task):
            self._open(task)
        one = self._new_pass()
        one.inside = self.tasks.outermost()
        return one

    def end_inner(self, output: Any) -> None:
        """A forward of the whole model inside a backward has ended."""
        if self._reruns.inner is not None and output is not None:
            self._watch_output(output, self._reruns.inner)

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

    # In a backward.

    def watch_parameters(self) -> None:
        """Also notice backwards by the parameters that they reach, until the model's own output shows them.

        That is for code that calls parts of a model and never the whole, where no output of the model exists.
        """
        self._shown_by_output = False
        if not self._sentinels:
            self._sentinels = [
                p.register_post_accumulate_grad_hook(self._accumulated)
                for p in self.tasks.parameters
                if p.requires_grad and not is_lazy(p)
            ]

    def ignore_parameters(self) -> None:
        """No longer notice backwards by parameters."""
        for handle in self._sentinels:
            handle.remove()
        self._sentinels = []

    def _accumulated(self, parameter: nn.Parameter) -> None:
        """A gradient has arrived at a parameter: if that is the first sign of a backward, outputs do not show all."""
        with untraced():  # a backward within a compiled function is no part of its graph, and Dynamo traces its hooks
            task = task_id()
            if self.plan is not None and not self.tasks.is_open(task) and not must_not_record():
                self._open(task, parameter)
                self.tasks.count_anyway(task)
                self._shown_by_output = False

    def notice_backward(self) -> None:
        """The backward under way is one of the step's own, whatever its gradients look like at its end."""
        task = task_id()
        if self.plan is not None:
            if not self.tasks.is_open(task):
                self._open(task)
            self.tasks.count_anyway(self.tasks.outermost())

    def enter_task(self, task: int, of_pass: Pass) -> None:
        """The first gradient of a backward arrives at a pass: choose the row to write to."""
        if not self.tasks.is_open(task):
            self._open(task)
        left, self._pass_in_backward = self._pass_in_backward, of_pass
        self.passes.enter(of_pass, task, self.tasks.outermost(), left)

    def gradient_failed(self, entries: Sequence[Entry], row: Row, gradient: Tensor) -> None:
        """The gradient of some sites could not be read for all of them: find out for which."""
        for entry in entries:
            try:
                row.write_now(entry, gradient)
            except Exception as error:
                self._entry_failed(entry, error)

    def _entry_failed(self, entry: Entry, error: Exception) -> None:
        """A tensor cannot be read, or some of its stats cannot: these alone are left out from now on."""
        if self.plan is not None:
            self.plan.leave_out(entry, error)
        self.failed(entry.site, error)

    def _open(self, task: int, noticed_by: nn.Parameter | None = None) -> None:
        void = self.tasks.begin(task, noticed_by)
        if void and self.plan is not None:
            self.passes.drop_reached_by(void)
        # Queued twice over, so that it runs after the callbacks with which DDP and FSDP finish their reductions.
        when_backward_ends(lambda: when_backward_ends(lambda: self._close(task)))

    def _close(self, task: int) -> None:
        try:
            with untraced(), own_ops():
                self._task_ended(task)
        except Exception as error:
            self.failed("", error)

    def _task_ended(self, task: int) -> None:
        ended = self.tasks.end(task)
        if ended is Ended.UNKNOWN:
            return
        self._reruns.backward_ended(task)
        if ended is Ended.NESTED:
            self._reruns.nested_backward_ended(task)
            return
        self._reruns.forget()
        if ended is Ended.PROBE:
            self.passes.discard_gradients(task)
            self._num_probes += 1
            if self._num_probes == _MOST_PROBES:  # gradients may be used up, and gone, before a backward ends
                self.watch_parameters()
            return
        self._num_probes = 0
        self.passes.forget_repeated(task)
        for one in self.passes:  # not that of this thread: on a GPU this may be a thread of the engine
            if task in one.task_rows or len(self._forwarding) <= 1:
                one.is_over = True
        if self._shown_by_output:
            self.ignore_parameters()
        self._backward_ended()

    # At the edges of updates.

    def rescale(self, factor: Tensor) -> None:
        """Backwards that no optimizer has used yet carry another loss scale than the first ones of the step."""
        if self.plan is not None:
            self.passes.rescale(factor, self.tasks.unused())

    def optimizer_stepped(self) -> None:
        """An optimizer has used the gradients that there are; others may follow in this step."""
        self.tasks.mark_used()
        if self.passes.finished is not None:
            self.passes.finished.mark_used()

    def rows(self) -> tuple[list[Row], FinishedPasses | None]:
        """The rows of the step that count, and what there is of passes whose graph is freed."""
        return self.passes.counted_rows(self.tasks.committed), self.passes.finished

    def backward_row(self) -> Row:
        """The row of the pass whose backward is under way."""
        return self._pass_in_backward.task_row if self._pass_in_backward is not None else self.step_row()

    def step_row(self) -> Row:
        """The row of the step: the parameters' entries, and those of its first pass."""
        return self.passes.step_row()
