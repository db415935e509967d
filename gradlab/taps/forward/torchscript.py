"""TorchScript reads the attributes and hooks of a module, ours too: they are lifted off while it does.

`torch.jit.script` and `torch.jit.trace` make a type of all that is in a module's own attributes, and compile its hooks;
a call hook is no such thing, and a module with one could not be scripted. torch asks nobody before it reads, so the
function by which both begin is replaced while a monitor watches, and put back with the last one's end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from gradlab.hooks.call_hooks import CALL_ATTRIBUTE, CallHook, Hook, without_call_hooks
from gradlab.sites.names import all_modules

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class _Scripting:
    """Lifts what is gradlab's off a module that is about to be scripted or traced, between `attach` and `detach`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._original: Any = None
        self._replacement: Any = None

    def attach(self) -> None:
        """One more watches."""
        with self._lock:
            self._users += 1
            if self._users == 1 and self._original is None:
                self._replace()

    def detach(self) -> None:
        """One fewer watches. What somebody has put on top of ours meanwhile stays, and ours in it."""
        recursive: Any = torch.jit._recursive
        with self._lock:
            self._users -= 1
            if self._users == 0 and recursive.create_script_module is self._replacement:
                recursive.create_script_module = self._original
                self._original = self._replacement = None

    def _replace(self) -> None:
        recursive: Any = torch.jit._recursive
        original = self._original = recursive.create_script_module

        @functools.wraps(original)
        def create_script_module(nn_module: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(nn_module, nn.Module):
                return original(nn_module, *args, **kwargs)
            with lifted(nn_module):
                return original(nn_module, *args, **kwargs)

        self._replacement = recursive.create_script_module = create_script_module


scripting = _Scripting()


@contextmanager
def lifted(model: nn.Module) -> Iterator[None]:
    """While open, nothing of gradlab's is in the attributes and among the hooks of a model."""
    with ExitStack() as stack:
        for module in all_modules(model):
            if isinstance(module, torch.jit.ScriptModule):
                continue
            _lift_call(module, stack)
            for kind in _HOOKS:
                _lift_hooks(vars(module).get(kind), stack)
        yield


def _lift_call(module: nn.Module, stack: ExitStack) -> None:
    own = vars(module)
    top = own.get(CALL_ATTRIBUTE)
    if isinstance(top, CallHook):
        below = without_call_hooks(top)
        if below is None:
            del own[CALL_ATTRIBUTE]
        else:
            own[CALL_ATTRIBUTE] = below
        stack.callback(own.__setitem__, CALL_ATTRIBUTE, top)


def _lift_hooks(hooks: Any, stack: ExitStack) -> None:
    """Take our hooks out of a dictionary of them, and put all back in their order."""
    if not hooks or not any(isinstance(hook, Hook) for hook in hooks.values()):
        return
    before = list(hooks.items())

    def restore() -> None:
        hooks.clear()
        hooks.update(before)

    stack.callback(restore)
    for key, hook in before:
        if isinstance(hook, Hook):
            del hooks[key]
