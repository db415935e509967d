"""The hooks on the modules of a model for one plan: where the forward hands over the tensors that taps watch.

A call hook sees each call of a module that owns a watched site, a function mode the functional ops inside, both for the
steps alone on which a rule is due: arming 100 modules costs tens of microseconds, and on other steps no line of gradlab
runs. A copy or a pickle of a watched model is an unwatched one.

Not here: what is done at a site (`plan`, `calls`), or with a tensor that comes by (`recorder`).
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gradlab.autograd_engine import is_in_backward
from gradlab.hooks.call_hooks import CallHook, Hook
from gradlab.hooks.interpreter import (
    has_function_modes,
    in_functorch,
    must_not_record,
    num_dispatch_modes,
    outside_modes,
    pop_function_mode,
    push_function_mode,
    without_torch_function,
)
from gradlab.identity import IdentityDict, IdentitySet
from gradlab.sites.leaves import first_differentiable, leaves
from gradlab.sites.names import all_modules, unwrapped
from gradlab.sites.ops import hides_its_ops
from gradlab.sites.patterns import may_match, may_own_ops, names_inputs
from gradlab.taps.backward.hooks import Pass
from gradlab.taps.backward.recorder import Recorder
from gradlab.taps.backward.segments import FUNCTION_APPLY, Segment
from gradlab.taps.forward.calls import Call, Counts, OpNode, Several, Watch
from gradlab.taps.forward.compiled import Gates
from gradlab.taps.plan import Plan, Target

_is_grad_enabled = torch.is_grad_enabled


class _Block(CallHook):
    """A call of a module whose functional ops may be sites, or that has modules inside."""

    __slots__ = ("hooks", "is_owner", "watch")

    def __init__(self, module: nn.Module, hooks: ModuleHooks, watch: Watch, *, is_owner: bool) -> None:
        super().__init__(module)
        self.hooks, self.watch, self.is_owner = hooks, watch, is_owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if must_not_record():
            return self.run_unwatched(args, kwargs)
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        hooks = self.hooks
        scope = hooks.scope()
        if scope is None:
            return self.inner(*args, **kwargs)
        here = hooks.here
        call = here.counts.call(self.watch, scope)
        before = here.node
        here.node = call.ops
        if self.is_owner:
            here.watch_ops()
        try:
            output = self.inner(*args, **kwargs)
        finally:
            here.node = before
            if self.is_owner:
                here.stop_watching_ops()
        hooks.returned(self.watch, call, output, scope)
        return output


class _Leaf(CallHook):
    """A call of a module whose ops are its own business."""

    __slots__ = ("hooks", "watch")

    def __init__(self, module: nn.Module, hooks: ModuleHooks, watch: Watch) -> None:
        super().__init__(module)
        self.hooks, self.watch = hooks, watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if must_not_record():
            return self.run_unwatched(args, kwargs)
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        hooks = self.hooks
        scope = hooks.scope()
        if scope is None:
            return self.inner(*args, **kwargs)
        here = hooks.here
        call = here.counts.call(self.watch, scope)
        before = here.node
        here.node = None
        is_hidden = here.watching > 0 and here.hide_ops()
        try:
            output = self.inner(*args, **kwargs)
            hooks.returned(self.watch, call, output, scope)
        finally:
            here.node = before
            if is_hidden:
                here.show_ops()
        return output


_CALLS = (_Block.__call__.__code__, _Leaf.__call__.__code__)


class _Root(CallHook):
    """A call of the model as the user calls it, wrapped or not: a forward pass."""

    __slots__ = ("hooks",)

    def __init__(self, module: nn.Module, hooks: ModuleHooks) -> None:
        super().__init__(module)
        self.hooks = hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if must_not_record():
            return self.run_unwatched(args, kwargs)
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        self.hooks.begin_root()
        output = None
        try:
            output = self.inner(*args, **kwargs)
            return output
        finally:
            self.hooks.end_root(output)


class _Inputs(Hook):
    """A pre-hook of a module whose inputs are watched: it sees them as other pre-hooks have left them."""

    __slots__ = ("hooks", "module", "watch")

    def __init__(self, module: nn.Module, hooks: ModuleHooks, watch: Watch) -> None:
        self.module, self.hooks, self.watch = module, hooks, watch

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is not self.module or must_not_record():
            return
        scope = self.hooks.scope()
        running = self.hooks.here.counts.running(self.watch, scope) if scope is not None else None
        if scope is not None and running is not None:
            values = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            self.hooks.see(self.watch.input_site(running), values, scope)


class _OpWatcher(TorchFunctionMode):
    """Sees each call of a torch function in user code; what the function calls inside is hidden from it."""

    def __init__(self, hooks: ModuleHooks, here: _Here) -> None:
        super().__init__()
        self.hooks = hooks
        self.here = here

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        here = self.here
        node = here.node
        if node is not None:
            child = node.next.get(func)
            if child is None:
                with without_torch_function():
                    child = node.grow(func, result, self.hooks.plan)
            if child is not node:
                here.node = child
                if child.target is not None:
                    self.hooks.op(child.target, result)
        return result


class _Here(threading.local):
    """Where the forward of this thread is: each thread that calls the model is in one of its own."""

    def __init__(self, hooks: ModuleHooks) -> None:
        self.node: OpNode | None = None
        """Where the running module's ops are in their sequence; None where they are its own business."""
        self.watching = 0
        """How many modules under way want their functional ops seen."""
        self.root_runs = 0
        """How many calls of the model as the user calls it are under way."""
        self.counts = Counts()
        self._watcher = _OpWatcher(hooks, self)

    def watch_ops(self) -> None:
        """Report functional ops from now on, until as many calls of `stop_watching_ops`."""
        if not self.watching:
            self._watcher.__enter__()  # type: ignore[no-untyped-call]
        self.watching += 1

    def stop_watching_ops(self) -> None:
        """The counterpart of `watch_ops`."""
        if self.watching:
            self.watching -= 1
            if not self.watching:
                self._watcher.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def hide_ops(self) -> bool:
        """Report no ops until `show_ops`; False where that cannot be done, another mode being innermost."""
        innermost = pop_function_mode()
        if innermost is self._watcher:
            return True
        push_function_mode(innermost)
        return False

    def show_ops(self) -> None:
        """The counterpart of `hide_ops`."""
        push_function_mode(self._watcher)

    def forget(self) -> None:
        """Drop what a forward that was interrupted has left behind."""
        self.node = None
        while self.watching:
            self.stop_watching_ops()


class ModuleHooks:
    """All hooks on the modules of one model for a plan."""

    def __init__(self, model: nn.Module, names: IdentityDict[nn.Module, str], plan: Plan, recorder: Recorder) -> None:
        self.model = model
        self.plan = plan
        self.recorder = recorder
        self.armed = False
        self.here = _Here(self)
        self._call_hooks: IdentityDict[nn.Module, list[CallHook]] = IdentityDict()
        self._input_hooks: list[tuple[nn.Module, int, _Inputs]] = []
        self._known: dict[tuple[int, tuple[str, bool, bool]], _Leaf | _Block] = {}
        self._root: _Root | None = None
        self._register(names)
        self._gates = Gates(model, self.records_now, self.run_compiled)
        if self._gates.are_none():
            self._gates.search()
        self._is_unseen = False
        """Whether the step under way has shown no forward of the whole model."""

    def use(self, names: IdentityDict[nn.Module, str]) -> None:
        """The model has these modules now. The hooks of those that it had go on, in a forward under way too."""
        was_armed = self.armed
        if was_armed:
            self.disarm()
        self._call_hooks, self._input_hooks = IdentityDict(), []
        self._register(names)
        self._gates.use(self.model)
        if was_armed:
            self.arm()

    def arm(self) -> None:
        """Put everything in place."""
        self._gates.place()
        self._install(self._call_hooks)
        for module, key, hook in self._input_hooks:
            module._forward_pre_hooks[key] = hook
            module._forward_pre_hooks_with_kwargs[key] = True
        self.armed = True

    def disarm(self) -> None:
        """Take everything out again."""
        self.armed = False
        for module, key, _ in self._input_hooks:
            module._forward_pre_hooks.pop(key, None)
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        self._remove(self._call_hooks)
        self._gates.remove()

    def _install(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for hook in self._call_hooks[module]:
                hook.install()

    def _remove(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for hook in reversed(self._call_hooks[module]):
                hook.remove()

    def run_compiled(self, module: nn.Module, call: Callable[[], Any]) -> Any:
        """Run the graph of a module in whose inside no tap is interested: unseen, but noted as a pass."""
        inside = (
            [one for one in all_modules(module) if one in self._call_hooks and one is not module] if self.armed else []
        )
        is_root = unwrapped(module) is unwrapped(self.model)
        output = None
        self._remove(inside)
        if is_root:
            self.begin_root()
        try:
            output = call()
            return output
        finally:
            if is_root:
                self.end_root(output)
            if self.armed:
                self._install(inside)

    def records_now(self) -> bool:
        """Whether a call that now begins somewhere in the model is one that a tap wants to see."""
        if not self.armed or not self.plan.tensor_rules or must_not_record():
            return False
        if is_in_backward():
            return bool(self.recorder.passes)
        return self.recorder.here.current is not None if self.here.root_runs else torch.is_grad_enabled()

    def _register(self, names: IdentityDict[nn.Module, str]) -> None:
        patterns = [p for rule in self.plan.tensor_rules for p in rule.patterns if not p.startswith("!")]
        wants_inputs = any(names_inputs(pattern) for pattern in patterns)
        opaque = IdentitySet(module for module in names if hides_its_ops(module))
        owners = IdentitySet(m for m, name in names.items() if m not in opaque and may_own_ops(name, patterns))
        inside_owner = IdentitySet(m for owner in owners for m in all_modules(owner))
        inner = unwrapped(self.model)
        known: dict[tuple[int, tuple[str, bool, bool]], _Leaf | _Block] = {}
        for module, name in names.items():
            site = "output" if module is inner else name
            is_watched = any(may_match(pattern, site) for pattern in patterns)
            if isinstance(module, torch.jit.ScriptModule) or not (is_watched or module in inside_owner):
                continue
            kind = (name, module in opaque, module in owners)
            hook = self._known.get((id(module), kind)) or self._call_hook_for(module, *kind, is_root=module is inner)
            known[id(module), kind] = hook
            self._call_hooks.setdefault(module, []).append(hook)
            if wants_inputs:
                self._input_hooks.append((module, _fresh_key(), _Inputs(module, self, hook.watch)))
        self._known = known
        if not isinstance(self.model, torch.jit.ScriptModule):
            self._root = self._root or _Root(self.model, self)
            self._call_hooks.setdefault(self.model, []).append(self._root)

    def _call_hook_for(
        self, module: nn.Module, name: str, is_opaque: bool, is_owner: bool, *, is_root: bool
    ) -> _Leaf | _Block:
        watch = Watch(name, is_root=is_root)
        return _Leaf(module, self, watch) if is_opaque else _Block(module, self, watch, is_owner=is_owner)

    def begin_root(self) -> None:
        """The model as the user calls it starts a forward: a new pass, unless it calls itself or is recomputed."""
        if must_not_record():
            return
        here = self.here
        here.root_runs += 1
        if here.root_runs > 1:
            return
        if is_in_backward():
            self.recorder.inside_backward(whole=True)
            return
        here.forget()
        self._is_unseen = False
        if self.recorder.begin_pass() is None:
            self.recorder.here.ignoring = True

    def end_root(self, output: Any) -> None:
        """The model's forward ends; its output's gradient will tell that a backward reached this pass."""
        if must_not_record():
            return
        here = self.here
        here.root_runs -= 1
        if here.root_runs > 0:
            return
        if is_in_backward():
            self.recorder.end_inner(output)
            return
        here.root_runs = 0
        here.forget()
        recorded = self.recorder.here
        current = recorded.current
        if recorded.ignoring:
            recorded.ignoring = False
        elif output is not None and current is not None:
            current.row.flush()
            with without_torch_function():
                tensor = first_differentiable(output)
                if tensor is not None:
                    self.recorder.watch_output(tensor, current)

    def begin_step(self) -> None:
        """A step begins: whatever a forward of this thread that was interrupted left behind is dropped."""
        self.here.root_runs = 0
        self.here.forget()
        if self._is_unseen:
            self._gates.search()
        self._install(module for module in self._gates.place() if module in self._call_hooks)
        self._is_unseen = True

    def scope(self) -> Pass | Segment | None:
        """What a tensor seen now belongs to: the pass under way, a recomputed segment, or None: nothing is recorded.

        A pass is begun where a part of the model is called by itself, with gradients on.
        """
        recorder = self.recorder
        if is_in_backward():
            return recorder.inside_backward()
        here = recorder.here
        if here.ignoring:
            return None
        is_whole = self.here.root_runs
        if not is_whole and not _is_grad_enabled():
            return self._scope_without_gradients()
        current = here.current
        return current if current is not None and (is_whole or not current.is_over) else recorder.begin_pass()

    def _scope_without_gradients(self) -> Pass | None:
        """A part is called without gradients: it counts inside a call that does, or inside an autograd function."""
        frame, current = sys._getframe(2), self.recorder.here.current
        if current is not None and current.is_over:
            current = None
        while frame is not None:
            if frame.f_code is FUNCTION_APPLY:
                return current or self.recorder.begin_pass(has_graph=True)
            if frame.f_code in _CALLS and current is not None and frame.f_locals.get("scope") is current:
                return current
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def returned(self, watch: Watch, call: Call, output: Any, scope: Pass | Segment) -> None:
        """A module has returned."""
        if output is None:
            self.plan.without_tensors[watch.output_site(call)] = "NoneType"
            return
        current = self.recorder.here.current
        if scope is not current or current.is_over or is_in_backward():
            now = self.scope()
            if now is None:
                return
            scope = now
        if type(output) is not Tensor:
            self.see(watch.output_site(call), output, scope)
            return
        if not call.known:
            call.target = self.plan.target(watch.output_site(call))
            call.known = True
        if call.target is not None:
            self.record(call.target, output, scope)

    def op(self, target: Target | Several, result: Any) -> None:
        """A functional op that is a site has run."""
        scope = None if in_functorch() else self.scope()
        if scope is None:
            return
        if type(target) is Target and type(result) is Tensor:
            self.record(target, result, scope)
        else:
            self.see(target.site, result, scope)

    def named(self, name: str, value: Tensor) -> None:
        """A tensor was named with `gradlab.tap`."""
        scope = None if must_not_record() else self.scope()
        if scope is not None:
            self.see(scope.named.next(name), value, scope)

    def see(self, site: str, value: Any, scope: Pass | Segment) -> None:
        """Record the tensors of a value where a rule wants them."""
        with without_torch_function():
            suffix = None
            for suffix, tensor in leaves(value):
                target = self.plan.target(site + suffix)
                if target is not None:
                    self.record(target, tensor, scope)
            if suffix is None:
                self.plan.without_tensors[site] = type(value).__qualname__

    def record(self, target: Target, tensor: Tensor, scope: Pass | Segment) -> None:
        """A watched tensor comes by."""
        try:
            if isinstance(scope, Segment):
                self.recorder.recomputed(target.site, tensor, scope)
            elif num_dispatch_modes():
                with outside_modes(), without_torch_function():  # a default device too
                    self.recorder.record(target, tensor, scope)
            elif has_function_modes():  # that of gradlab itself, nearly always
                with without_torch_function():
                    self.recorder.record(target, tensor, scope)
            else:
                self.recorder.record(target, tensor, scope)
        except Exception as error:
            self.plan.leave_alone(target)
            self.recorder.failed(target.site, error)


def _fresh_key() -> int:
    """A key that no hook of torch's has or will have: hook dictionaries count on that."""
    return RemovableHandle(OrderedDict()).id
