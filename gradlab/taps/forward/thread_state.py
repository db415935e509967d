"""Where the forward of a thread is: the functional ops that are seen now, and the calls of modules so far.

Each thread that calls the model is in a forward of its own. A function mode sees the functional ops; it is entered only
while a module runs whose ops may be sites.

Not here: what is done with the result of an op (`modules`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch.overrides import TorchFunctionMode

from gradlab.hooks.interpreter import pop_function_mode, push_function_mode, without_torch_function
from gradlab.taps.forward.calls import CallCounts, OpNode, SeveralTargets
from gradlab.taps.plan import Plan, Target


class OpReceiver(Protocol):
    """Gets the results of functional ops that are sites."""

    @property
    def plan(self) -> Plan:
        """Decides which ops are."""

    def op(self, target: Target | SeveralTargets, result: Any) -> None:
        """A functional op that is a site has run."""


class ThreadState(threading.local):
    """The state of this thread's forward under one plan."""

    def __init__(self, receiver: OpReceiver) -> None:
        self.node: OpNode | None = None
        """Where the running module's ops are in their sequence; None where they are its own business."""
        self.watching = 0
        """How many modules under way want their functional ops seen."""
        self.root_runs = 0
        """How many calls of the model as the user calls it are under way."""
        self.counts = CallCounts()
        self._watcher = _OpWatcher(receiver, self)

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


class _OpWatcher(TorchFunctionMode):
    """Sees each call of a torch function in user code; what the function calls inside is hidden from it."""

    def __init__(self, receiver: OpReceiver, state: ThreadState) -> None:
        super().__init__()
        self.receiver = receiver
        self.state = state

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        state = self.state
        node = state.node
        if node is not None:
            child = node.next.get(func)
            if child is None:
                with without_torch_function():
                    child = node.grow(func, result, self.receiver.plan)
            if child is not node:
                state.node = child
                if child.target is not None:
                    self.receiver.op(child.target, result)
        return result
