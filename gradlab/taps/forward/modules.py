"""All that one plan has on the modules of a model, and what a tensor that is seen there belongs to.

Hooks are on the modules that own a watched site, for the steps alone on which a rule is due: arming 100 modules costs
tens of microseconds, and on other steps no line of gradlab runs. A copy or a pickle of a watched model is unwatched.

Not here: the hooks themselves (`hooks`), which sites are watched (`plan`, `calls`), or what is done with a tensor
(`backward.recorder`).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradlab.autograd_engine import NO_TASK, is_in_backward, task_id
from gradlab.hooks.call_hooks import CallHook
from gradlab.hooks.interpreter import (
    has_function_modes,
    in_functorch,
    must_not_record,
    num_dispatch_modes,
    outside_modes,
    without_torch_function,
)
from gradlab.identity import IdentityDict, IdentitySet
from gradlab.sites.leaves import leaves
from gradlab.sites.names import all_modules, unwrapped
from gradlab.sites.ops import hides_its_ops
from gradlab.sites.patterns import may_match, may_own_ops, names_inputs
from gradlab.taps.backward.passes import Pass
from gradlab.taps.backward.recorder import Recorder
from gradlab.taps.backward.reruns import FUNCTION_APPLY
from gradlab.taps.backward.segments import Segment
from gradlab.taps.forward.calls import Call, SeveralTargets, WatchedModule
from gradlab.taps.forward.compiled import Gates
from gradlab.taps.forward.hooks import CALL_CODE, InputHook, ModuleCallHook, RootCallHook
from gradlab.taps.forward.thread_state import ThreadState
from gradlab.taps.plan import Plan, Target

_is_grad_enabled = torch.is_grad_enabled


class ModuleHooks:
    """All hooks on the modules of one model for a plan."""

    def __init__(self, model: nn.Module, names: IdentityDict[nn.Module, str], plan: Plan, recorder: Recorder) -> None:
        self.model = model
        self.plan = plan
        self.recorder = recorder
        self.armed = False
        self.thread_state = ThreadState(self)
        self._call_hooks: IdentityDict[nn.Module, list[CallHook]] = IdentityDict()
        self._input_hooks: list[tuple[nn.Module, int, InputHook]] = []
        self._known: dict[tuple[int, tuple[str, bool, bool]], ModuleCallHook] = {}
        self._root: RootCallHook | None = None
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
        return (
            self.recorder.thread_forward.current is not None if self.thread_state.root_runs else torch.is_grad_enabled()
        )

    def _register(self, names: IdentityDict[nn.Module, str]) -> None:
        patterns = [p for rule in self.plan.tensor_rules for p in rule.patterns if not p.startswith("!")]
        wants_inputs = any(names_inputs(pattern) for pattern in patterns)
        opaque = IdentitySet(module for module in names if hides_its_ops(module))
        owners = IdentitySet(m for m, name in names.items() if m not in opaque and may_own_ops(name, patterns))
        inside_owner = IdentitySet(m for owner in owners for m in all_modules(owner))
        inner = unwrapped(self.model)
        known: dict[tuple[int, tuple[str, bool, bool]], ModuleCallHook] = {}
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
                self._input_hooks.append((module, _fresh_key(), InputHook(module, self, hook.watched)))
        self._known = known
        if not isinstance(self.model, torch.jit.ScriptModule):
            self._root = self._root or RootCallHook(self.model, self)
            self._call_hooks.setdefault(self.model, []).append(self._root)

    def _call_hook_for(
        self, module: nn.Module, name: str, is_opaque: bool, is_owner: bool, *, is_root: bool
    ) -> ModuleCallHook:
        watched = WatchedModule(name, is_root=is_root)
        return ModuleCallHook(module, self, watched, hides_ops=is_opaque, owns_ops=is_owner)

    def begin_root(self) -> None:
        """The model as the user calls it starts a forward: a new pass, unless it calls itself or is recomputed."""
        if must_not_record():
            return
        state = self.thread_state
        state.root_runs += 1
        if state.root_runs > 1:
            return
        if is_in_backward():
            self.recorder.inside_backward(whole=True)
            return
        state.forget()
        self._is_unseen = False
        self.recorder.begin_forward()

    def end_root(self, output: Any) -> None:
        """The model's forward ends; a hook on its output will notice that a backward reached this pass."""
        if must_not_record():
            return
        state = self.thread_state
        state.root_runs -= 1
        if state.root_runs > 0:
            return
        if is_in_backward():
            self.recorder.end_inner(output)
            return
        state.root_runs = 0
        state.forget()
        self.recorder.end_forward(output)

    def begin_step(self) -> None:
        """A step begins: whatever a forward of this thread that was interrupted left behind is dropped."""
        self.thread_state.root_runs = 0
        self.thread_state.forget()
        if self._is_unseen:
            self._gates.search()
        self._install(module for module in self._gates.place() if module in self._call_hooks)
        self._is_unseen = True

    def scope(self) -> Pass | Segment | None:
        """What a tensor seen now belongs to: the pass under way, a recomputed segment, or None: nothing is recorded.

        A pass is begun where a part of the model is called by itself, with gradients on.
        """
        recorder = self.recorder
        if task_id() != NO_TASK:  # `is_in_backward` without its call, since this is asked at each call of a module
            return recorder.inside_backward()
        of_thread = recorder.thread_forward
        if of_thread.ignoring:
            return None
        is_whole = self.thread_state.root_runs
        if not is_whole and not _is_grad_enabled():
            return self._scope_without_gradients()
        current = of_thread.current
        return current if current is not None and (is_whole or not current.is_over) else recorder.begin_pass()

    def _scope_without_gradients(self) -> Pass | None:
        """A part is called without gradients: it counts inside a call that does, or inside an autograd function."""
        frame, current = sys._getframe(2), self.recorder.thread_forward.current
        if current is not None and current.is_over:
            current = None
        while frame is not None:
            if frame.f_code is FUNCTION_APPLY:
                return current or self.recorder.begin_pass(has_graph=True)
            if frame.f_code is CALL_CODE and current is not None and frame.f_locals.get("scope") is current:
                return current
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def returned(self, module: WatchedModule, call: Call, output: Any, scope: Pass | Segment) -> None:
        """A module has returned."""
        if output is None:
            self.plan.without_tensors[module.output_site(call)] = "NoneType"
            return
        current = self.recorder.thread_forward.current
        if scope is not current or current.is_over or task_id() != NO_TASK:
            now = self.scope()
            if now is None:
                return
            scope = now
        if type(output) is not Tensor:
            self.see(module.output_site(call), output, scope)
            return
        if not call.known:
            call.target = self.plan.target(module.output_site(call))
            call.known = True
        if call.target is not None:
            self.record(call.target, output, scope)

    def op(self, target: Target | SeveralTargets, result: Any) -> None:
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
