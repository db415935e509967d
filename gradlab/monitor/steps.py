"""Steps: what is called just before and after optimizers step, and when a step of the training has ended.

Belongs here: the hooks on optimizers, closures, several optimizers a step. Does not: which optimizers are counted
(`counted_optimizers`), what can be seen of a `step` under way (`running_step`), and what is measured at these moments
(`training_step`).

What counts as a step is decided here, once, for every kind of optimizer:

1. **The outermost `step` is the step.** What other optimizers do inside it is part of it: a wrapper (Lookahead,
   ZeroRedundancyOptimizer, a SAM that is called as `step(closure)`) steps once, and its update is the whole of it. A
   wrapper inside of which none of its own optimizers steps, and that changes nothing, has not stepped.
2. **Whoever steps is followed** (`counted_optimizers`). An optimizer that was given is counted while it steps. Another
   one that owns some of its parameters takes its place when it steps outside of it: a new optimizer in mid-run, or the
   one inside a wrapper whose own `step` is never called. One that steps other parameters is counted where no optimizer
   was given, or where these parameters came, or began to be trained, later.
3. **A `step` that runs no hooks of torch's** (an object of another kind, a `step` that is the instance's own) is seen
   by a method in its place on the given object (`StepHook`).
4. **Where steps are missing, one warning says so** (`missing_steps`), and people count them with `stepping()`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from gradlab.autograd_engine import is_in_backward
from gradlab.hooks.compiled_step import is_traced, outside_graph, untraced
from gradlab.hooks.step_hooks import StepHook
from gradlab.monitor.counted_optimizers import CountedOptimizers
from gradlab.monitor.missing_steps import MissingSteps
from gradlab.monitor.running_step import RunningStep, UsedGradients, is_any_step_under_way
from gradlab.optimizers import UnknownOptimizer, has_hooks, optimizers_inside


class Listener(Protocol):
    """What is called at the edges of a step."""

    def update_begins(self, optimizer: Optimizer) -> None:
        """An optimizer's `step` has been entered; with a closure, its gradients do not exist yet."""

    def before_update(self, optimizer: Optimizer) -> None:
        """The gradients are complete, the update has not begun."""

    def optimizer_begins(self) -> None:
        """An optimizer's `step` has been entered, and the gradients have been read as far as they exist."""

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""

    def in_backward(self, optimizer: Optimizer, *, has_stepped: bool) -> None:
        """An optimizer is about to step, or has stepped, while the backward goes on."""

    def step_ended(self) -> None:
        """All optimizers have stepped."""


class Steps:
    """Counts the steps of the optimizers of one model.

    Args:
        given: the optimizers to count, of torch or of any kind that has a `step`; where left out, any of torch's that
            owns some of the parameters.
        parameters: gives the parameters that the model has now.
        listener: is called at the edges of each step.
    Raises:
        TapError: a given optimizer owns none of the model's parameters.
    """

    def __init__(self, given: Any, parameters: Callable[[], Mapping[str, nn.Parameter]], listener: Listener) -> None:
        self._parameters = parameters
        self._listener = listener
        self._counted = CountedOptimizers(given, parameters)
        self._step_hooks = [StepHook(known_as, one, self) for one, known_as in self._counted.without_hooks]
        self.missing = MissingSteps(self._counted.given_names)
        """Warns where backwards end and no step comes."""
        self._handles: list[RemovableHandle] = []
        self._is_attached = False
        self._has_global_hooks = False
        self._stepped: set[int] = set()
        """Ids of the optimizers that have stepped in the step under way."""
        self._found_stepping: set[int] = set()
        """Ids of those that were found when they stepped for the first time."""
        self._running: RunningStep | None = None
        self._last: UsedGradients | None = None
        self._wrappers: dict[int, tuple[weakref.ref[Any], bool]] = {}

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers of torch's that are counted."""
        return tuple([one for one in self._counted.alive if has_hooks(one)])

    @property
    def is_attached(self) -> bool:
        """Whether steps are being counted."""
        return self._is_attached

    def attach(self) -> None:
        """Start counting, by hooks of the given optimizers and by one on all."""
        self._is_attached = True
        for optimizer in self._counted.with_hooks:
            self._handles += [
                optimizer.register_step_pre_hook(self.before_given),
                optimizer.register_step_post_hook(self.after_given),
            ]
        for hook in self._step_hooks:
            hook.install()
        self._register_global_hooks()

    def _register_global_hooks(self) -> None:
        """Hooks on all optimizers; not from within one, where torch goes through the hooks that there are."""
        if self._is_attached and not self._has_global_hooks and not is_any_step_under_way():
            self._has_global_hooks = True
            self._handles += [
                register_optimizer_step_pre_hook(self.before_any),
                register_optimizer_step_post_hook(self.after_any),
            ]

    def detach(self) -> None:
        """Stop counting. From within a step, hooks stay where they are until the next call, and do nothing."""
        self._is_attached = False
        for hook in self._step_hooks:
            hook.remove()
        if not is_any_step_under_way():
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._has_global_hooks = False

    def add(self, optimizer: Optimizer) -> None:
        """Count one more. It takes the place of those that own some of the same parameters."""
        self._counted.add(optimizer)

    def parameters_changed(self) -> None:
        """The model has other parameters: optimizers of none of them are waited for no longer."""
        self._counted.parameters_changed()

    def _is_ours(self, optimizer: Any) -> bool:
        """Whether the steps of this optimizer are steps of the model, or parts of them."""
        if self._counted.is_counted(optimizer) or self._counted.is_to_be_followed(optimizer):
            return True
        self.missing.other_stepped(optimizer, owns_some=bool(self._counted.owned(optimizer)))
        return False

    def _follow(self, optimizer: Any) -> None:
        """Count an optimizer that has begun to step, in the place of those that own some of its parameters.

        Unless they have just used the same gradients: then both step together.
        """
        if not self._counted.is_counted(optimizer):
            self._counted.add(optimizer, beside_all=self._last is not None and self._last.are_current())
            self._found_stepping.add(id(optimizer))

    # The hooks.

    def before_given(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A hook on a given optimizer."""
        if is_traced():
            return outside_graph(self, "before_given", optimizer, args, kwargs)
        with untraced():
            return self.step_begins(optimizer, args, kwargs)

    def after_given(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """A hook on a given optimizer."""
        if is_traced():
            outside_graph(self, "after_given", optimizer, args, kwargs)
            return
        with untraced():
            self.step_ends(optimizer)

    def before_any(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A hook on all optimizers, those of other models included."""
        if is_traced():
            return outside_graph(self, "before_any", optimizer, args, kwargs)
        with untraced():
            if self._counted.has_own_hooks(optimizer) or not (self._is_attached and self._is_ours(optimizer)):
                return None
            return self.step_begins(optimizer, args, kwargs)

    def after_any(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """A hook on all optimizers, those of other models included."""
        if is_traced():
            outside_graph(self, "after_any", optimizer, args, kwargs)
            return
        with untraced():
            if not self._counted.has_own_hooks(optimizer) and self._is_attached and self._is_ours(optimizer):
                self.step_ends(optimizer)

    def step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A `step` is entered. Where a closure is given, the gradients exist only after it: then it is wrapped."""
        if not self._is_attached:
            return None
        if is_in_backward():
            self._follow(optimizer)
            self._listener.in_backward(optimizer, has_stepped=False)
            return None
        place = self._enter(optimizer)
        if place == "again":
            return None
        if place == "outermost":
            self._follow(optimizer)
            if id(optimizer) in self._stepped:
                self.end()
            self._listener.update_begins(optimizer)
        where, closure = _closure(args, kwargs)
        if closure is None:
            self._listener.before_update(optimizer)
        if place == "outermost":
            self._listener.optimizer_begins()
        if closure is None:
            return None

        def read_after_closure(*a: Any, **k: Any) -> Any:
            loss = closure(*a, **k)
            with untraced():
                self._listener.before_update(optimizer)
            return loss

        if where == "closure":
            return args, {**kwargs, "closure": read_after_closure}
        return (args[0], read_after_closure, *args[2:]), kwargs

    def step_ends(self, optimizer: Any, *, has_stepped: bool = True) -> None:
        """A `step` is left."""
        if not self._is_attached:
            return
        if is_in_backward():
            self._listener.in_backward(optimizer, has_stepped=True)
            self._stepped.add(id(optimizer))
            self.missing.stepped()
            return
        running = self._running
        if running is not None:
            if not running.is_of(optimizer):
                running.inner_ids.add(id(optimizer))
                return
            running.depth -= 1
            if running.depth > 0:
                return
            self._running = None
            if not has_stepped or not running.has_stepped():
                return
            self._stepped |= running.inner_ids
        self._finish(optimizer, had_gradients=running is None or running.had_gradients())

    def graph_ran(self, optimizer: Any) -> None:
        """One graph with a whole step in it has run: if it has changed gradients too, it has clipped them."""
        if self._is_attached and self._running is not None and self._running.have_gradients_changed():
            self._listener.before_update(optimizer)

    def _enter(self, optimizer: Any) -> str:
        """Where a `step` begins: "outermost", "again" (`super().step()`), or "inside" that of another optimizer."""
        running = self._running
        if running is not None and running.is_of(optimizer) and running.is_open(but=1):
            running.depth += 1
            return "again"
        if running is not None and not running.is_of(optimizer) and running.is_open():
            return "inside"
        is_seen = any(one.known_as is optimizer for one in self._step_hooks)
        self._running = RunningStep(optimizer, always_ends=is_seen, is_wrapper=self._is_wrapper(optimizer))
        return "outermost"

    def _is_wrapper(self, optimizer: Any) -> bool:
        """Whether it is for others to step inside of this optimizer's `step`."""
        known = self._wrappers.get(id(optimizer))
        if known is None or known[0]() is not optimizer:
            is_one = not isinstance(optimizer, UnknownOptimizer) and bool(optimizers_inside(optimizer))
            known = self._wrappers[id(optimizer)] = (weakref.ref(optimizer), is_one)
        return known[1]

    def _finish(self, optimizer: Any, *, had_gradients: bool) -> None:
        self._listener.after_update(optimizer)
        self._last = UsedGradients(optimizer)
        if had_gradients or self._last.exist:
            self.missing.stepped()
        else:
            self.missing.stepped_without_gradient(optimizer)
        self._stepped.add(id(optimizer))
        # One that is found after another's step has ended is the rest of that step: the next one begins with both.
        is_rest = id(optimizer) in self._found_stepping and self._stepped == {id(optimizer)}
        self._found_stepping.discard(id(optimizer))
        if is_rest or all(id(one) in self._stepped for one in self._counted.alive):
            self.end()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """What runs in the block is the update of one step, whoever does it."""
        if not self._is_attached:
            yield
            return
        everything: Any = UnknownOptimizer("stepping()", self._parameters)
        if self._stepped:
            self.end()
        self._running = mine = RunningStep(everything, always_ends=True, is_wrapper=False)
        self._listener.update_begins(everything)
        self._listener.before_update(everything)
        self._listener.optimizer_begins()
        try:
            yield
        except BaseException:
            self._running = None
            raise
        if self._running is mine:
            self._running = None
            self._listener.after_update(everything)
            self.missing.stepped()
            self.end()

    def backward_ended(self, *, leaves_traces: bool) -> None:
        """A backward through the model has ended; `leaves_traces` where gradients were thrown away or vanished."""
        self._register_global_hooks()
        self.missing.backward_ended(list(self._parameters().values()), leaves_traces=leaves_traces)

    def end(self) -> None:
        """The step ends here."""
        self._stepped.clear()
        self._listener.step_ended()


def _closure(args: Any, kwargs: Any) -> tuple[str, Any]:
    """The closure among what a `step` is called with (the optimizer itself first), and where it is."""
    if callable(kwargs.get("closure")):
        return "closure", kwargs["closure"]
    return "", args[1] if len(args) > 1 and callable(args[1]) else None
