"""Steps: which optimizers are counted, what happens just before and after they step, and when a step has ended.

Belongs here: the hooks on optimizers, closures, several optimizers a step. Does not: what is measured at these moments
(`monitor`), and what kinds of optimizers there are (`taps.wrappers`).

What counts as a step is decided here, once, for every kind of optimizer:

1. **The outermost `step` is the step.** What other optimizers do inside it is part of it: a wrapper (Lookahead,
   ZeroRedundancyOptimizer, a SAM that is called as `step(closure)`) steps once, and its update is the whole of it. A
   wrapper inside of which none of its own optimizers steps, and that changes nothing, has not stepped.
2. **Whoever steps is followed.** An optimizer that was given is counted while it steps. Another one that owns some of
   its parameters takes its place when it steps outside of it: a new optimizer in mid-run, or the one inside a wrapper
   whose own `step` is never called. One that steps other parameters is counted where no optimizer was given, or where
   these parameters came, or began to be trained, later.
3. **A `step` that runs no hooks of torch's** (an object of another kind, a `step` that is the instance's own) is seen
   by a method in its place on the given object (`StepHook`).
4. **What nobody can see is said** (`taps.unstepped`), and people count it with `stepping()`.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from gradlab.autograd_engine import is_in_backward
from gradlab.errors import TapError
from gradlab.hooks.compiled_step import is_traced, outside_graph, untraced
from gradlab.hooks.interpreter import without_torch_function
from gradlab.hooks.step_hooks import StepHook
from gradlab.monitor.missing_steps import Unstepped
from gradlab.optimizers import UnknownOptimizer, has_hooks, optimizer_list, optimizers_inside, parameters_of, runs_hooks


class Listener(Protocol):
    """Who is told of the moments of a step."""

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
        parameters: tells which parameters the model has now.
        listener: is told.
    Raises:
        TapError: a given optimizer owns none of the model's parameters.
    """

    def __init__(self, given: Any, parameters: Callable[[], Mapping[str, nn.Parameter]], listener: Listener) -> None:
        self._parameters = parameters
        self._listener = listener
        each = [real for one in optimizer_list(given) for real in self._in_place_of(one)]
        self._step_hooks = [self._step_hook(one) for one in each if not runs_hooks(one)]
        ours = [one for one in each if runs_hooks(one)]
        shown = [one.known_as for one in self._step_hooks]
        self._refs: tuple[weakref.ref[Any], ...] = tuple(map(weakref.ref, [*ours, *shown]))
        self._own = tuple(map(weakref.ref, ours))
        """The given optimizers on which hooks of their own are put."""
        self._given = {id(p) for one in (*ours, *shown) for p in parameters_of(one)}
        """Ids of the parameters of those that were given."""
        trained = [p for p in parameters().values() if p.requires_grad]
        self._left_out = [weakref.ref(p) for p in trained if id(p) not in self._given]
        """Those that were to be trained from the beginning, and that nobody who was given owns."""
        self._handles: list[RemovableHandle] = []
        self._is_on = False
        self._hears_all = False
        self._stepped: set[int] = set()
        self._fresh: set[int] = set()
        """Those that were found when they stepped for the first time."""
        self._outer: _Running | None = None
        self._last: _Used | None = None
        self._verdicts: dict[int, tuple[Any, ...]] = {}
        self._wraps: dict[int, tuple[weakref.ref[Any], bool]] = {}
        self.unstepped = Unstepped([_name(one) for one in (*ours, *shown)])
        for one in ours:
            if not self._owned(one):
                raise TapError(
                    f"the optimizer {type(one).__name__} owns none of the model's parameters. Where it steps copies of "
                    f"them, leave it out and put the update into `with monitor.stepping():`."
                )

    def _in_place_of(self, given: Any) -> list[Any]:
        """What steps for a given optimizer: those inside of a dummy that has no parameter of the model itself."""
        inside = [] if self._owned(given) else [one for one in optimizers_inside(given) if self._owned(one)]
        return inside if runs_hooks(given) and inside else [given]

    def _step_hook(self, given: Any) -> StepHook:
        """A given object whose `step` runs no hooks of torch's."""
        unknown = UnknownOptimizer(type(given).__name__, self._parameters)
        known_as = given if has_hooks(given) or self._owned(given) else unknown
        try:
            weakref.ref(known_as)
        except TypeError:
            known_as = unknown
        return StepHook(known_as, given, self)

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers that are counted. Their state is large: what watches a model must not keep it alive."""
        return tuple([one for one in self._counted if has_hooks(one)])

    @property
    def _counted(self) -> list[Any]:
        return [one for ref in self._refs if (one := ref()) is not None]

    @property
    def are_counted(self) -> bool:
        """Whether steps are being counted."""
        return self._is_on

    def attach(self) -> None:
        """Start counting, by hooks of the given optimizers and by one on all."""
        self._is_on = True
        for ref in self._own:
            if (one := ref()) is not None:
                self._hook(one)
        for hook in self._step_hooks:
            hook.install()
        self._hear_all()

    def _hear_all(self) -> None:
        """Hooks on all optimizers; not from within one, where torch goes through the hooks that there are."""
        if self._is_on and not self._hears_all and not _is_any_step_under_way():
            self._hears_all = True
            self._handles += [
                register_optimizer_step_pre_hook(self.before_any),
                register_optimizer_step_post_hook(self.after_any),
            ]

    def detach(self) -> None:
        """Stop counting. From within a step, hooks stay where they are until the next call, and do nothing."""
        self._is_on = False
        for hook in self._step_hooks:
            hook.remove()
        if not _is_any_step_under_way():
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._hears_all = False

    def add(self, optimizer: Optimizer) -> None:
        """Count one more. It takes the place of those that own some of the same parameters."""
        self._add(optimizer, [one for one in self._counted if not _share(one, optimizer)])

    def _add(self, optimizer: Optimizer, others: Sequence[Any]) -> None:
        others = [one for one in others if one is not optimizer and self._owned(one)]
        self._refs = tuple(map(weakref.ref, [*others, optimizer]))
        self._given |= {id(p) for p in parameters_of(optimizer)} if self._given else set()

    def parameters_changed(self) -> None:
        """Optimizers whose parameters are all gone from the model are waited for no longer, where others are left."""
        left = [one for one in self._counted if self._owned(one)]
        if left:
            self._refs = tuple(map(weakref.ref, left))

    def _hook(self, optimizer: Optimizer) -> None:
        self._handles += [
            optimizer.register_step_pre_hook(self.before_own),
            optimizer.register_step_post_hook(self.after_own),
        ]

    # Whose steps are counted.

    def _owned(self, optimizer: Any) -> list[Tensor]:
        """The model's parameters among those of an optimizer."""
        ours = {id(p) for p in self._parameters().values()}
        return [p for p in parameters_of(optimizer) if id(p) in ours]

    def _has_own_hooks(self, optimizer: Any) -> bool:
        return any(ref() is optimizer for ref in self._own)

    def _is_counted(self, optimizer: Any) -> bool:
        return any(ref() is optimizer for ref in self._refs)

    def _is_ours(self, optimizer: Any) -> bool:
        """Whether the steps of this optimizer are steps of the model, or parts of them."""
        if self._is_counted(optimizer) or self._belongs(optimizer):
            return True
        self.unstepped.stranger(optimizer, owns_some=bool(self._owned(optimizer)))
        return False

    def _follow(self, optimizer: Any) -> None:
        """Count an optimizer that has begun to step, in the place of those that own some of its parameters.

        Unless they have just used the same gradients: then both step together.
        """
        if not self._is_counted(optimizer):
            is_rest = self._last is not None and self._last.is_same_step()
            self._add(optimizer, [one for one in self._counted if is_rest or not _share(one, optimizer)])
            self._fresh.add(id(optimizer))

    def _belongs(self, optimizer: Any) -> bool:
        """Whether an optimizer that nobody has given is to be followed; looked up anew where parameters are others."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        now = self._parameters()
        known = self._verdicts.get(id(optimizer))
        if known is None or known[0]() is not optimizer or known[1] != size or known[2] is not now:
            owned = {id(p) for p in self._owned(optimizer)}
            left_out = {id(p) for ref in self._left_out if (p := ref()) is not None}
            verdict = bool(owned and (not self._given or owned & self._given or owned - left_out))
            known = self._verdicts[id(optimizer)] = (weakref.ref(optimizer), size, now, verdict)
        return bool(known[3])

    # The hooks.

    def before_own(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A hook on a given optimizer."""
        if is_traced():
            return outside_graph(self, "before_own", optimizer, args, kwargs)
        with untraced():
            return self.step_begins(optimizer, args, kwargs)

    def after_own(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """A hook on a given optimizer."""
        if is_traced():
            outside_graph(self, "after_own", optimizer, args, kwargs)
            return
        with untraced():
            self.step_ends(optimizer)

    def before_any(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A hook on all optimizers, those of other models included."""
        if is_traced():
            return outside_graph(self, "before_any", optimizer, args, kwargs)
        with untraced():
            if self._has_own_hooks(optimizer) or not (self._is_on and self._is_ours(optimizer)):
                return None
            return self.step_begins(optimizer, args, kwargs)

    def after_any(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """A hook on all optimizers, those of other models included."""
        if is_traced():
            outside_graph(self, "after_any", optimizer, args, kwargs)
            return
        with untraced():
            if not self._has_own_hooks(optimizer) and self._is_on and self._is_ours(optimizer):
                self.step_ends(optimizer)

    def step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A `step` is entered. Where a closure is given, the gradients exist only after it: then it is wrapped."""
        if not self._is_on:
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

        def then_look(*a: Any, **k: Any) -> Any:
            loss = closure(*a, **k)
            with untraced():
                self._listener.before_update(optimizer)
            return loss

        if where == "closure":
            return args, {**kwargs, "closure": then_look}
        return (args[0], then_look, *args[2:]), kwargs

    def step_ends(self, optimizer: Any, *, has_stepped: bool = True) -> None:
        """A `step` is left."""
        if not self._is_on:
            return
        if is_in_backward():
            self._listener.in_backward(optimizer, has_stepped=True)
            self._stepped.add(id(optimizer))
            self.unstepped.stepped()
            return
        outer = self._outer
        if outer is not None:
            if not outer.shows(optimizer):
                outer.inner.add(id(optimizer))
                return
            outer.depth -= 1
            if outer.depth > 0:
                return
            self._outer = None
            if not has_stepped or not outer.has_stepped():
                return
            self._stepped |= outer.inner
        self._finish(optimizer, had_gradients=outer is None or outer.had_gradients())

    def graph_ran(self, optimizer: Any) -> None:
        """One graph with a whole step in it has run: if it has changed gradients too, it has clipped them."""
        if self._is_on and self._outer is not None and self._outer.have_gradients_changed():
            self._listener.before_update(optimizer)

    def _enter(self, optimizer: Any) -> str:
        """Where a `step` begins: "outermost", "again" (`super().step()`), or "inside" that of another optimizer."""
        outer = self._outer
        if outer is not None and outer.shows(optimizer) and outer.is_open(but=1):
            outer.depth += 1
            return "again"
        if outer is not None and not outer.shows(optimizer) and outer.is_open():
            return "inside"
        is_seen = any(one.known_as is optimizer for one in self._step_hooks)
        self._outer = _Running(optimizer, always_ends=is_seen, is_wrapper=self._is_wrapper(optimizer))
        return "outermost"

    def _is_wrapper(self, optimizer: Any) -> bool:
        """Whether it is for others to step inside of this optimizer's `step`."""
        known = self._wraps.get(id(optimizer))
        if known is None or known[0]() is not optimizer:
            is_one = not isinstance(optimizer, UnknownOptimizer) and bool(optimizers_inside(optimizer))
            known = self._wraps[id(optimizer)] = (weakref.ref(optimizer), is_one)
        return known[1]

    def _finish(self, optimizer: Any, *, had_gradients: bool) -> None:
        self._listener.after_update(optimizer)
        self._last = _Used(optimizer)
        if had_gradients or self._last.are_some:
            self.unstepped.stepped()
        else:
            self.unstepped.idle(optimizer)
        self._stepped.add(id(optimizer))
        # One that is found after another's step has ended is the rest of that step: the next one begins with both.
        is_rest = id(optimizer) in self._fresh and self._stepped == {id(optimizer)}
        self._fresh.discard(id(optimizer))
        if is_rest or all(id(one) in self._stepped for one in self._counted):
            self.end()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """What runs in the block is the update of one step, whoever does it."""
        if not self._is_on:
            yield
            return
        everything: Any = UnknownOptimizer("stepping()", self._parameters)
        if self._stepped:
            self.end()
        self._outer = mine = _Running(everything, always_ends=True, is_wrapper=False)
        self._listener.update_begins(everything)
        self._listener.before_update(everything)
        self._listener.optimizer_begins()
        try:
            yield
        except BaseException:
            self._outer = None
            raise
        if self._outer is mine:
            self._outer = None
            self._listener.after_update(everything)
            self.unstepped.stepped()
            self.end()

    def backward_ended(self, *, leaves_traces: bool) -> None:
        """A backward through the model has ended; `leaves_traces` where gradients were thrown away or vanished."""
        self._hear_all()
        self.unstepped.backward_ended(list(self._parameters().values()), leaves_traces=leaves_traces)

    def end(self) -> None:
        """The step ends here."""
        self._stepped.clear()
        self._listener.step_ended()


class _Running:
    """The outermost `step` that is under way."""

    def __init__(self, optimizer: Any, *, always_ends: bool, is_wrapper: bool) -> None:
        """Args: always_ends: whether its end is told even where it raises, as hooks of torch's do not."""
        self._ref = weakref.ref(optimizer)
        self._always_ends = always_ends
        self.depth = 1
        self.inner: set[int] = set()
        """Ids of the optimizers that have stepped inside of it."""
        self._parameters = parameters_of(optimizer) if is_wrapper else []
        self._versions = [p._version for p in self._parameters] if is_wrapper else None
        self._used = _Used(optimizer)

    def shows(self, optimizer: Any) -> bool:
        """Whether it is this one's."""
        return self._ref() is optimizer

    def is_open(self, *, but: int = 0) -> bool:
        """Whether it is under way still; one that raised is not. `but`: how many calls are just being entered."""
        optimizer = self._ref()
        return self._always_ends or (optimizer is not None and _steps_under_way(optimizer) > but)

    def had_gradients(self) -> bool:
        """Whether there were gradients when it began; not so with a closure."""
        return self._used.are_some

    def have_gradients_changed(self) -> bool:
        """Whether the gradients are others than when it began."""
        return not self._used.is_same_step()

    def has_stepped(self) -> bool:
        """Whether anything has been updated, where it is for other optimizers to do so."""
        return self._versions is None or bool(self.inner) or self._versions != [p._version for p in self._parameters]


class _Used:
    """The gradients that the last step has used: as long as they are the same, no backward has come since."""

    def __init__(self, optimizer: Any) -> None:
        with without_torch_function():  # these are no questions of the user's
            p = _first_with_gradient(optimizer)
            self._parameter = p if p is None else weakref.ref(p)
            self._grad = None if p is None else weakref.ref(p.grad)
            self._version = 0 if p is None else p.grad._version  # type: ignore[union-attr]

    @property
    def are_some(self) -> bool:
        """Whether there are any."""
        return self._parameter is not None

    def is_same_step(self) -> bool:
        """Whether an optimizer that steps now uses the gradients of that step too."""
        p = self._parameter() if self._parameter is not None else None
        grad = self._grad() if self._grad is not None else None
        with without_torch_function():
            return p is not None and grad is not None and p.grad is grad and grad._version == self._version


def _first_with_gradient(optimizer: Any) -> Tensor | None:
    """Nearly always its first parameter, so no list of all is made."""
    groups = getattr(optimizer, "param_groups", None)
    for group in groups if isinstance(groups, list) else ():
        for p in group.get("params", ()):
            if getattr(p, "grad", None) is not None:
                return p  # type: ignore[no-any-return]
    return None


def _closure(args: Any, kwargs: Any) -> tuple[str, Any]:
    """The closure among what a `step` is called with (the optimizer itself first), and where it is."""
    if callable(kwargs.get("closure")):
        return "closure", kwargs["closure"]
    return "", args[1] if len(args) > 1 and callable(args[1]) else None


def _share(one: Any, other: Any) -> bool:
    """Whether two optimizers own some of the same parameters."""
    mine = {id(p) for p in parameters_of(other)}
    return one is not other and any(id(p) in mine for p in parameters_of(one))


def _name(optimizer: Any) -> str:
    return optimizer.name if isinstance(optimizer, UnknownOptimizer) else type(optimizer).__name__


def _steps_under_way(optimizer: Any) -> int:
    """How many of torch's wrappers around `step` are running for an optimizer; one whose step raised has none left."""
    return sum(1 for frame in _wrapper_frames() if frame.f_locals.get("self") is optimizer)


def _is_any_step_under_way() -> bool:
    return any(True for _ in _wrapper_frames())


def _wrapper_frames() -> Iterator[Any]:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _WRAPPER and "pre_hook" in frame.f_code.co_varnames:
            yield frame
        frame = frame.f_back  # type: ignore[assignment]


_WRAPPER = inspect.getfile(Optimizer)
