"""The forward hooks of one plan: installed on the modules that own a watched site, for the steps on which it is due.

Hooks are put straight into the modules' hook dictionaries and taken out again: arming 100 modules costs tens of
microseconds, and a step on which nothing is due runs no line of gradlab. The hook objects copy and pickle as inert
callables, so that `deepcopy`, `pickle` and `torch.save` of a watched model give an unwatched one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradlab.taps.functional import OpWatcher
from gradlab.taps.plan import Plan
from gradlab.taps.recorder import Pass, Recorder, first_differentiable, is_recomputing
from gradlab.taps.sites import leaves, match, names_inputs, unwrapped
from gradlab.taps.visit import CallNames, hides_its_ops, root_site

# Takes any positional arguments, returns None, and pickles without gradlab: what a copied hook turns into.
_INERT = nullcontext().__exit__


class Hook:
    """A forward hook bound to an action. Copies and pickles as a callable that does nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[..., None]) -> None:
        self.action = action

    def __call__(self, *args: Any) -> None:
        # Inside a compiled graph this branch is folded away; compiled modules are not watched from inside.
        if not torch.compiler.is_compiling():
            self.action(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _INERT

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


class ModuleHooks:
    """All hooks of a plan on one model."""

    def __init__(self, model: nn.Module, names: dict[nn.Module, str], plan: Plan, recorder: Recorder) -> None:
        self.model = model
        self.inner = unwrapped(model)
        self.plan = plan
        self.recorder = recorder
        self.watcher = OpWatcher(self.op)
        self.watching = 0
        self.hidden = 0
        self.calls = CallNames()
        self.root_runs = 0
        patterns = [p for rule in plan.tensor_rules for p in rule.patterns if not p.startswith("!")]
        self.wants_inputs = any(names_inputs(pattern) for pattern in patterns)
        self.owners = {m for m, name in names.items() if not hides_its_ops(m) and _may_own_ops(name, patterns)}
        self._slots: list[tuple[dict[int, Any], int, Any]] = []
        self._make(names, patterns)
        self.armed = False

    def arm(self) -> None:
        """Put the hooks in place."""
        for registry, key, hook in self._slots:
            registry[key] = hook
        self.armed = True

    def disarm(self) -> None:
        """Take the hooks out again."""
        for registry, key, _ in self._slots:
            registry.pop(key, None)
        self.armed = False

    def _make(self, names: dict[nn.Module, str], patterns: list[str]) -> None:
        self._before(self.model, self.begin_root)
        inside_owner = {m for owner in self.owners for m in owner.modules()}
        for module, name in names.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            watched = any(_may_match(pattern, name) for pattern in patterns)
            if module is self.inner:
                watched = watched or any(_may_match(pattern, "output") for pattern in patterns)
            if watched or module in inside_owner:
                self._before(module, _Enter(self, module, name))
                self._after(module, _Leave(self, module))
        self._after(self.model, self.end_root)

    def _before(self, module: nn.Module, action: Callable[..., None]) -> None:
        """A hook that runs before the module, with its keyword arguments."""
        key = _fresh_key()
        self._slots.append((module._forward_pre_hooks, key, Hook(action)))
        self._slots.append((module._forward_pre_hooks_with_kwargs, key, True))

    def _after(self, module: nn.Module, action: Callable[..., None]) -> None:
        """A hook that runs after the module, after an exception too."""
        key = _fresh_key()
        self._slots.append((module._forward_hooks, key, Hook(action)))
        self._slots.append((module._forward_hooks_always_called, key, True))

    def begin_root(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The model as the user calls it starts a forward: a new pass."""
        self.root_runs += 1
        if self.root_runs > 1 or is_recomputing():
            return
        self._reset()
        if self.recorder.begin_pass() is None:
            self.recorder.ignoring += 1

    def end_root(self, module: nn.Module, args: Any, output: Any) -> None:
        """The model's forward ends; its output's gradient will tell that a backward reached this pass."""
        self.root_runs -= 1
        if self.root_runs > 0 or is_recomputing():
            return
        self.root_runs = 0
        self._reset()
        if self.recorder.ignoring:
            self.recorder.ignoring = 0
        elif output is not None and self.recorder.current is not None:
            tensor = first_differentiable(output)
            if tensor is not None:
                self.recorder.watch_output(tensor, self.recorder.current)

    def _reset(self) -> None:
        """Forget what an interrupted forward left on the stacks."""
        self.calls, self.hidden = CallNames(), 0
        while self.watching:
            self._stop_watching()

    def current(self) -> Pass | None:
        """The pass that a tensor seen now belongs to; one is begun where a part of the model is called by itself."""
        if self.recorder.ignoring:
            return None
        return self.recorder.current or self.recorder.begin_pass()

    def watch_ops(self) -> None:
        """Report functional ops from now on, until as many calls of `_stop_watching`."""
        if not self.watching:
            self.watcher.__enter__()
        self.watching += 1

    def _stop_watching(self) -> None:
        self.watching -= 1
        if not self.watching:
            self.watcher.__exit__(None, None, None)

    def enter(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> None:
        """A module starts its forward."""
        if not self.calls.stack:
            if is_recomputing():
                self.calls = self.recorder.segment().names
            elif self.recorder.current is None:
                self.calls = CallNames()
        site = self.calls.enter(name)
        self.hidden += hides_its_ops(module)
        if module in self.owners:
            self.watch_ops()
        if self.wants_inputs:
            values = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            self.see(root_site("input", site) if module is self.inner else f"{site}:in", values)

    def leave(self, module: nn.Module, output: Any) -> None:
        """A module ends its forward, with an output or (None) an exception."""
        if not self.calls.stack:
            return
        if module in self.owners and self.watching:
            self._stop_watching()
        self.hidden -= hides_its_ops(module)
        site = self.calls.leave()
        if output is not None:
            self.see(root_site("output", site) if module is self.inner else site, output)

    def op(self, op: str, result: Any) -> Any:
        """A functional op has run."""
        if not self.hidden and self.calls.stack and _floating(result):
            self.see(self.calls.op(op), result)
        return result

    def named(self, name: str, value: Tensor) -> Tensor:
        """A tensor was named with `gradlab.tap`."""
        if self.armed and (into := self.current()) is not None:
            number = into.calls[name] = into.calls[name] + 1
            self.see(name if number == 1 else f"{name}#{number}", value)
        return value

    def see(self, site: str, value: Any) -> None:
        """Record the tensors of a value where a rule wants them."""
        into = self.recorder.backward_pass if is_recomputing() else self.current()
        if into is None:
            return
        with torch._C.DisableTorchFunction():  # the reductions of the hooks are no ops of the user's
            if type(value) is Tensor:
                self._see_tensor(site, value, into)
            else:
                for suffix, tensor in leaves(value):
                    self._see_tensor(site + suffix, tensor, into)

    def _see_tensor(self, site: str, tensor: Tensor, into: Pass) -> None:
        target = self.plan.target(site)
        if target is None:
            return
        try:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                raise TypeError(f"its tensor is {tensor.dtype}; only floating-point tensors have norms and gradients")
            if is_recomputing():
                self.recorder.recomputed(site, tensor)
            else:
                self.recorder.record(target, tensor, into)
        except Exception as error:
            self.plan.without(site)
            self.recorder.failed(site, error)


class _Enter:
    __slots__ = ("hooks", "module", "name")

    def __init__(self, hooks: ModuleHooks, module: nn.Module, name: str) -> None:
        self.hooks, self.module, self.name = hooks, module, name

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.hooks.enter(self.module, self.name, args, kwargs)


class _Leave:
    __slots__ = ("hooks", "module")

    def __init__(self, hooks: ModuleHooks, module: nn.Module) -> None:
        self.hooks, self.module = hooks, module

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.hooks.leave(self.module, output)


def _fresh_key() -> int:
    """A key that no hook of torch's has or will have: hook dictionaries count on that."""
    return RemovableHandle(OrderedDict()).id


def _floating(value: Any) -> bool:
    if type(value) is Tensor:
        return value.is_floating_point()
    return any(tensor.is_floating_point() for _, tensor in leaves(value))


def _may_match(pattern: str, name: str) -> bool:
    """Whether a pattern can match the module's own site or anything after it: an item, a call, an input, an op."""
    literal = pattern.split("*")[0].split("?")[0]
    if len(literal) == len(pattern):
        return pattern == name or (
            pattern.startswith(name) and pattern[len(name) : len(name) + 1] in ("[", "#", ":", "/")
        )
    return name.startswith(literal) or literal.startswith(name) or match(pattern, name)


def _may_own_ops(name: str, patterns: list[str]) -> bool:
    """Whether a functional op called in this module can be chosen."""
    for pattern in patterns:
        literal = pattern.split("*")[0].split("?")[0]
        whole = len(literal) == len(pattern)
        start = f"{name}/"
        if whole and pattern.startswith((start, f"{name}#")) and "/" in pattern:
            return True
        if not whole and (start.startswith(literal) or literal.startswith(start)):
            return True
    return False
