"""Whether some modules are called in a forward with gradients: with what they give, something is trained.

A frozen teacher or target network is called under `no_grad`. Belongs here: hooks on these few modules until they have
been called. Does not: which modules are asked for (`collection`).
"""

from __future__ import annotations

from collections.abc import Iterable
from sys import getrefcount
from typing import Any

import torch
from torch import nn

from gradlab.hooks.call_hooks import CallHook, is_compiled
from gradlab.sites.names import module_names

_MOST_CALLS = 8
"""Calls without gradients after which a module counts as called so alone."""
_MOST_MODULES = 64


class _Calls(CallHook):
    """Notes whether a module is called with gradients, and takes itself off once that is known."""

    __slots__ = ("called", "count", "name")

    def __init__(self, module: nn.Module, name: str, called: CalledModules) -> None:
        super().__init__(module)
        self.name, self.called, self.count = name, called, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.run_unwatched(args, kwargs)
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        inner = self.inner
        self.count += 1
        self.called.note(self.name, is_last=self.count >= _MOST_CALLS)
        return inner(*args, **kwargs)


class CalledModules:
    """By name of a module that was asked for and has been called since: whether that was with gradients."""

    def __init__(self) -> None:
        self.known: dict[str, bool] = {}
        self._asked: set[str] = set()
        self._hooks: dict[str, _Calls] = {}

    def note(self, name: str, *, is_last: bool) -> None:
        """A module is called."""
        self.known[name] = self.known.get(name, False) or torch.is_grad_enabled()
        if self.known[name] or is_last:
            self._hooks.pop(name).remove()

    def ask(self, model: nn.Module, names: Iterable[str]) -> None:
        """Follow the calls of some modules of a model, those that are compiled excepted."""
        wanted = set(names) - self._asked
        if not wanted or len(self._asked) >= _MOST_MODULES:
            return
        self._asked |= wanted
        modules = module_names(model)
        if any(map(is_compiled, modules)):
            return
        for module, name in modules.items():
            if name in wanted:
                self._hooks[name] = _Calls(module, name, self)
                self._hooks[name].install()

    def close(self) -> None:
        """Leave no hook."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
