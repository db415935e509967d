"""The hooks of one plan on modules: around each call of a module that owns a site, of the whole model, and on inputs.

They keep where the forward is (`thread_state`, `calls`), and hand what a module returns to `ModuleHooks`.

Not here: which modules get hooks, and what is recorded (`modules`).
"""

from __future__ import annotations

from sys import getrefcount
from typing import Any, Protocol

from torch import nn

from gradlab.hooks.call_hooks import CallHook, Hook
from gradlab.hooks.interpreter import must_not_record
from gradlab.taps.backward.passes import Pass
from gradlab.taps.backward.segments import Segment
from gradlab.taps.forward.calls import Call, WatchedModule
from gradlab.taps.forward.thread_state import ThreadState


class ForwardReceiver(Protocol):
    """What hooks on modules call."""

    @property
    def thread_state(self) -> ThreadState:
        """Where the forward of this thread is."""

    def scope(self) -> Pass | Segment | None:
        """What a tensor seen now belongs to; None where nothing is recorded."""

    def returned(self, module: WatchedModule, call: Call, output: Any, scope: Pass | Segment) -> None:
        """A module has returned."""

    def see(self, site: str, value: Any, scope: Pass | Segment) -> None:
        """Record the tensors of a value where a rule wants them."""

    def begin_root(self) -> None:
        """The model as the user calls it starts a forward."""

    def end_root(self, output: Any) -> None:
        """It returns `output`, or raises (None)."""


class ModuleCallHook(CallHook):
    """Around the calls of one module.

    Args:
        module: the module.
        receiver: gets what it returns.
        watched: the module under this plan.
        hides_ops: the functional ops inside are its own business.
        owns_ops: they may be sites, so that they have to be seen.
    """

    __slots__ = ("hides_ops", "owns_ops", "receiver", "watched")

    def __init__(
        self, module: nn.Module, receiver: ForwardReceiver, watched: WatchedModule, *, hides_ops: bool, owns_ops: bool
    ) -> None:
        super().__init__(module)
        self.receiver, self.watched = receiver, watched
        self.hides_ops, self.owns_ops = hides_ops, owns_ops and not hides_ops

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if must_not_record():
            return self.run_unwatched(args, kwargs)
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        receiver = self.receiver
        scope = receiver.scope()
        if scope is None:
            return self.inner(*args, **kwargs)
        state = receiver.thread_state
        call = state.counts.call(self.watched, scope)
        before, is_hidden = state.node, False
        if self.hides_ops:
            state.node = None
            is_hidden = state.watching > 0 and state.hide_ops()
        else:
            state.node = call.ops
            if self.owns_ops:
                state.watch_ops()
        try:
            output = self.inner(*args, **kwargs)
            if is_hidden:  # while no function mode is on, which costs less
                receiver.returned(self.watched, call, output, scope)
        finally:
            state.node = before
            if is_hidden:
                state.show_ops()
            if self.owns_ops:
                state.stop_watching_ops()
        if not is_hidden:
            receiver.returned(self.watched, call, output, scope)
        return output


CALL_CODE = ModuleCallHook.__call__.__code__
"""By it a frame is known to be such a call; its variable `scope` has what the call is recorded into."""


class RootCallHook(CallHook):
    """Around the calls of the model as the user calls it, wrapped or not: each is a forward pass."""

    __slots__ = ("receiver",)

    def __init__(self, module: nn.Module, receiver: ForwardReceiver) -> None:
        super().__init__(module)
        self.receiver = receiver

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if must_not_record():
            return self.run_unwatched(args, kwargs)
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        self.receiver.begin_root()
        output = None
        try:
            output = self.inner(*args, **kwargs)
            return output
        finally:
            self.receiver.end_root(output)


class InputHook(Hook):
    """A pre-hook of a module whose inputs are watched: it sees them as other pre-hooks have left them."""

    __slots__ = ("module", "receiver", "watched")

    def __init__(self, module: nn.Module, receiver: ForwardReceiver, watched: WatchedModule) -> None:
        self.module, self.receiver, self.watched = module, receiver, watched

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is not self.module or must_not_record():
            return
        scope = self.receiver.scope()
        running = self.receiver.thread_state.counts.running(self.watched, scope) if scope is not None else None
        if scope is not None and running is not None:
            values = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            self.receiver.see(self.watched.input_site(running), values, scope)
