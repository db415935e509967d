"""The forward hooks of one plan: installed on the modules that own a watched site, for the steps on which it is due.

Hooks are put straight into the modules' hook dictionaries and taken out again: arming 100 modules costs tens of
microseconds, and a step on which nothing is due runs no line of gradlab. The hook objects copy and pickle as inert
callables, so that `deepcopy`, `pickle` and `torch.save` of a watched model give an unwatched one.

What a hook has to do at a site is worked out once and found again by position: the calls of a module by their number,
the functional ops inside it by a tree of the ops that came before. No name is built on a step that repeats another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gradlab.taps.compiled import Gates
from gradlab.taps.functional import op_name
from gradlab.taps.plan import Plan, Target
from gradlab.taps.quiet import muted
from gradlab.taps.recorder import NO_TASK, Pass, Recorder, Segment, first_differentiable, is_recomputing
from gradlab.taps.sites import leaves, match, names_inputs, unwrapped
from gradlab.taps.visit import hides_its_ops, root_site

# Takes any positional arguments, returns None, and pickles without gradlab: what a copied hook turns into.
_INERT = nullcontext().__exit__
_is_compiling = torch.compiler.is_compiling
_ops_are_watched: Callable[[], bool] = torch._C._is_torch_function_mode_enabled
_task_id: Callable[[], int] = torch._C._current_graph_task_id


class Hook:
    """A hook on a module. Copies and pickles as a callable that does nothing."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _INERT

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


class OpNode:
    """A place in the sequence of functional ops of one call of a module: what comes next, and what is done with it."""

    __slots__ = ("counts", "module_site", "next", "target")

    def __init__(self, module_site: str, counts: Counter[str], target: Target | None = None) -> None:
        self.module_site = module_site
        self.counts = counts
        self.target = target
        self.next: dict[Any, OpNode] = {}

    def grow(self, function: Any, result: Any, plan: Plan) -> OpNode:
        """Follow an op that was not met here before. One that is no site leads back to where it is called."""
        op = op_name(function)
        if op is None or not _floating(result):
            self.next[function] = self
            return self
        number = self.counts[op]
        site = f"{self.module_site}/{op}" + (f"_{number}" if number else "")
        target = plan.target(site) if type(result) is Tensor else _Several(site)
        child = self.next[function] = OpNode(self.module_site, self.counts + Counter((op,)), target)  # type: ignore[arg-type]
        return child


class _Several:
    """Stands for the targets of a result that is no single tensor: they are looked up by name."""

    __slots__ = ("site",)

    def __init__(self, site: str) -> None:
        self.site = site


class _Call:
    """The first, second, ... call of a module in a pass."""

    __slots__ = ("known", "ops", "site", "target")

    def __init__(self, site: str) -> None:
        self.site = site
        self.ops = OpNode(site, Counter())
        self.known = False
        self.target: Target | None = None


class _Watch:
    """One module under one plan."""

    __slots__ = ("calls", "count", "is_owner", "is_root", "is_tracked", "name", "opaque", "scope")

    def __init__(self, name: str, *, is_root: bool, opaque: bool, is_owner: bool, is_tracked: bool) -> None:
        self.name = name
        self.is_root = is_root
        self.opaque = opaque
        self.is_owner = is_owner
        self.is_tracked = is_tracked
        self.calls: list[_Call] = []
        self.count = 0
        self.scope: object = None

    def call(self, scope: object) -> _Call:
        """The next call of the module in a pass (or in the recomputation of a segment)."""
        if self.scope is not scope:
            self.scope, self.count = scope, 0
        number = self.count
        self.count = number + 1
        if number == len(self.calls):
            self.calls.append(_Call(self.name if number == 0 else f"{self.name}#{number + 1}"))
        return self.calls[number]


class _Enter(Hook):
    """Before a module whose ops or inputs are watched."""

    __slots__ = ("hooks", "watch")

    def __init__(self, hooks: ModuleHooks, watch: _Watch) -> None:
        self.hooks, self.watch = hooks, watch

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if _is_compiling() or muted():
            return
        hooks, watch = self.hooks, self.watch
        scope = hooks.scope()
        call = watch.call(scope)
        sees_ops = watch.is_owner and scope is not None
        hooks.stack.append((hooks.node, call, sees_ops))
        hooks.node = None if watch.opaque else call.ops
        if sees_ops:
            hooks.watch_ops()
        if kwargs is not None and scope is not None:
            values = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            hooks.see(root_site("input", call.site) if watch.is_root else f"{call.site}:in", values, scope)


class _Leave(Hook):
    """After a module, with its output or (after an exception) with None."""

    __slots__ = ("hooks", "watch")

    def __init__(self, hooks: ModuleHooks, watch: _Watch) -> None:
        self.hooks, self.watch = hooks, watch

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if _is_compiling() or muted():
            return
        hooks, watch = self.hooks, self.watch
        call = None
        if watch.is_tracked:
            if not hooks.stack:
                return
            hooks.node, call, sees_ops = hooks.stack.pop()
            if sees_ops:
                hooks.stop_watching_ops()
        if output is None:
            return
        scope = hooks.recorder.current
        if scope is None or _task_id() != NO_TASK:
            scope = hooks.scope()  # type: ignore[assignment]
            if scope is None:
                return
        if call is None:
            call = watch.call(scope)
        if type(output) is not Tensor:
            hooks.see(root_site("output", call.site) if watch.is_root else call.site, output, scope)
            return
        if not call.known:
            call.target = hooks.plan.target(root_site("output", call.site) if watch.is_root else call.site)
            call.known = True
        if call.target is not None:
            if _ops_are_watched():
                with torch._C.DisableTorchFunction():  # the reductions of the hooks are no ops of the user's
                    hooks.record(call.target, output, scope)
            else:
                hooks.record(call.target, output, scope)


class _BeginRoot(Hook):
    """The model as the user calls it starts a forward."""

    __slots__ = ("hooks",)

    def __init__(self, hooks: ModuleHooks) -> None:
        self.hooks = hooks

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.hooks.begin_root()


class _EndRoot(Hook):
    """The model's forward ends."""

    __slots__ = ("hooks",)

    def __init__(self, hooks: ModuleHooks) -> None:
        self.hooks = hooks

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.hooks.end_root(output)


class _OpWatcher(TorchFunctionMode):
    """Sees each call of a torch function in user code; what the function calls inside is hidden from it."""

    def __init__(self, hooks: ModuleHooks) -> None:
        super().__init__()
        self.hooks = hooks

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        node = self.hooks.node
        if node is not None:
            child = node.next.get(func)
            if child is None:
                child = node.grow(func, result, self.hooks.plan)
            if child is not node:
                self.hooks.node = child
                if child.target is not None:
                    self.hooks.op(child.target, result)
        return result


class ModuleHooks:
    """All hooks of a plan on one model."""

    def __init__(self, model: nn.Module, names: dict[nn.Module, str], plan: Plan, recorder: Recorder) -> None:
        self.model = model
        self.plan = plan
        self.recorder = recorder
        self.armed = False
        self.node: OpNode | None = None
        """Where the running module's ops are in their sequence; None where they are its own business."""
        self.stack: list[tuple[OpNode | None, _Call, bool]] = []
        """For each module entered: where its caller's ops are, which call this is, and whether its ops are seen."""
        self._watcher = _OpWatcher(self)
        self.watching = 0
        """How many modules under way want their functional ops seen."""
        self._root_runs = 0
        self._registrations: dict[nn.Module, list[tuple[dict[int, Any], int, Any]]] = {}
        self._register(names)
        self._gates = Gates(model, self.records_now, self.run_compiled)
        if self._gates.are_none():
            self._gates.search()
        self._is_unseen = False
        """Whether the step under way has shown no forward of the whole model."""

    def arm(self) -> None:
        """Put the hooks in place."""
        self._put(self._registrations)
        self._gates.place()
        self.armed = True

    def disarm(self) -> None:
        """Take the hooks out again."""
        self._gates.remove()
        self._take(self._registrations)
        self.armed = False

    def _put(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for registry, key, hook in self._registrations[module]:
                registry[key] = hook

    def _take(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for registry, key, _ in self._registrations[module]:
                registry.pop(key, None)

    def run_compiled(self, module: nn.Module, call: Callable[[], Any]) -> Any:
        """Run the graph of a module in whose inside no tap is interested: without these hooks, but noted as a pass."""
        inside = [one for one in module.modules() if one in self._registrations] if self.armed else []
        is_root = unwrapped(module) is unwrapped(self.model)
        output = None
        self._take(inside)
        if is_root:
            self.begin_root()
        try:
            output = call()
            return output
        finally:
            if is_root:
                self.end_root(output)
            if self.armed:
                self._put(inside)

    def records_now(self) -> bool:
        """Whether a call that now begins somewhere in the model is one that a tap wants to see."""
        if not self.armed or not self.plan.tensor_rules or muted():
            return False
        if is_recomputing():
            return bool(self.recorder.passes)
        return self.recorder.current is not None if self._root_runs else torch.is_grad_enabled()

    def _register(self, names: dict[nn.Module, str]) -> None:
        patterns = [p for rule in self.plan.tensor_rules for p in rule.patterns if not p.startswith("!")]
        wants_inputs = any(names_inputs(pattern) for pattern in patterns)
        opaque = {module for module in names if hides_its_ops(module)}
        owners = {m for m, name in names.items() if m not in opaque and _may_own_ops(name, patterns)}
        inside_owner = {m for owner in owners for m in owner.modules()}
        inner = unwrapped(self.model)
        self._before(self.model, _BeginRoot(self))
        for module, name in names.items():
            site = "output" if module is inner else name
            is_watched = any(_may_match(pattern, site) for pattern in patterns)
            if isinstance(module, torch.jit.ScriptModule) or not (is_watched or module in inside_owner):
                continue
            watch = _Watch(
                name,
                is_root=module is inner,
                opaque=module in opaque,
                is_owner=module in owners,
                is_tracked=wants_inputs or module in inside_owner,
            )
            if watch.is_tracked:
                self._before(module, _Enter(self, watch), with_kwargs=wants_inputs)
            self._after(module, _Leave(self, watch))
        self._after(self.model, _EndRoot(self))

    def _before(self, module: nn.Module, hook: Hook, *, with_kwargs: bool = False) -> None:
        key, places = _fresh_key(), self._registrations.setdefault(module, [])
        places.append((module._forward_pre_hooks, key, hook))
        if with_kwargs:
            places.append((module._forward_pre_hooks_with_kwargs, key, True))

    def _after(self, module: nn.Module, hook: Hook) -> None:
        key, places = _fresh_key(), self._registrations.setdefault(module, [])
        places.append((module._forward_hooks, key, hook))
        places.append((module._forward_hooks_always_called, key, True))

    def begin_root(self) -> None:
        """The model as the user calls it starts a forward: a new pass, unless it calls itself or is recomputed."""
        if _is_compiling() or muted():
            return
        self._root_runs += 1
        if self._root_runs > 1 or is_recomputing():
            return
        self._forget_the_stack()
        self._is_unseen = False
        if self.recorder.begin_pass() is None:
            self.recorder.ignoring = True

    def end_root(self, output: Any) -> None:
        """The model's forward ends; its output's gradient will tell that a backward reached this pass."""
        if _is_compiling() or muted():
            return
        self._root_runs -= 1
        if self._root_runs > 0 or is_recomputing():
            return
        self._root_runs = 0
        self._forget_the_stack()
        if self.recorder.ignoring:
            self.recorder.ignoring = False
        elif output is not None and self.recorder.current is not None:
            tensor = first_differentiable(output)
            if tensor is not None:
                self.recorder.watch_output(tensor, self.recorder.current)

    def begin_step(self) -> None:
        """A step begins: whatever a forward that was interrupted left behind is dropped."""
        self._root_runs = 0
        self._forget_the_stack()
        if self._is_unseen:
            self._gates.search()
        self._gates.place()
        self._is_unseen = True

    def _forget_the_stack(self) -> None:
        self.stack.clear()
        self.node = None
        while self.watching:
            self.stop_watching_ops()

    def scope(self) -> Pass | Segment | None:
        """What a tensor seen now belongs to: the pass under way, a recomputed segment, or None: nothing is recorded.

        A pass is begun where a part of the model is called by itself.
        """
        recorder = self.recorder
        if is_recomputing():
            return recorder.segment() if recorder.backward_pass is not None else None
        if recorder.ignoring:
            return None
        return recorder.current or recorder.begin_pass()

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

    def op(self, target: Target | _Several, result: Any) -> None:
        """A functional op that is a site has run."""
        scope = self.scope()
        if scope is None:
            return
        if type(target) is Target and type(result) is Tensor:
            self.record(target, result, scope)
        else:
            self.see(target.site, result, scope)

    def named(self, name: str, value: Tensor) -> None:
        """A tensor was named with `gradlab.tap`."""
        scope = self.scope()
        if scope is not None:
            number = scope.named[name] = scope.named[name] + 1
            self.see(name if number == 1 else f"{name}#{number}", value, scope)

    def see(self, site: str, value: Any, scope: Pass | Segment) -> None:
        """Record the tensors of a value where a rule wants them."""
        with torch._C.DisableTorchFunction():
            for suffix, tensor in leaves(value):
                target = self.plan.target(site + suffix)
                if target is not None:
                    self.record(target, tensor, scope)

    def record(self, target: Target, tensor: Tensor, scope: Pass | Segment) -> None:
        """A watched tensor comes by."""
        try:
            if type(scope) is Pass:
                self.recorder.record(target, tensor, scope)
            else:
                self.recorder.recomputed(target.site, tensor)
        except Exception as error:
            self.plan.leave_alone(target)
            self.recorder.failed(target.site, error)


def _fresh_key() -> int:
    """A key that no hook of torch's has or will have: hook dictionaries count on that."""
    return RemovableHandle(OrderedDict()).id


def _floating(value: Any) -> bool:
    return any(t.is_floating_point() or t.is_complex() for _, t in leaves(value))


def _literal(pattern: str) -> str:
    """What comes before the first wildcard."""
    return pattern.split("*")[0].split("?")[0]


def _may_match(pattern: str, name: str) -> bool:
    """Whether a pattern can match the module's own site or anything after it: an item, a call, an input, an op."""
    literal = _literal(pattern)
    if literal == pattern:
        return pattern == name or (pattern.startswith(name) and pattern[len(name)] in "[#:/")
    return name.startswith(literal) or literal.startswith(name) or match(pattern, name)


def _may_own_ops(name: str, patterns: Sequence[str]) -> bool:
    """Whether a functional op called in this module can be chosen."""
    for pattern in patterns:
        literal = _literal(pattern)
        if literal == pattern:
            if "/" in pattern and pattern.startswith((f"{name}/", f"{name}#")):
                return True
        elif f"{name}/".startswith(literal) or literal.startswith((f"{name}/", f"{name}#")):
            return True
    return False
