"""Calls of `torch.autograd.backward`: every way to start a backward from a loss comes through it.

`Tensor.backward` looks the function up in `torch.autograd` when it is called, and a GradScaler or a loop calls either.
So one function in its place sees them all, for 1 microsecond a backward while anybody listens. `autograd.grad`
does not come here: it accumulates no gradient.

Belongs here: being called before and after a backward. Does not: what is read of its graph (`facts`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch


class Listener(Protocol):
    """What hears of backwards. It may raise only where the backward is to fail."""

    def before_backward(self, tensors: Any) -> None:
        """A backward is about to start from a tensor or several."""

    def after_backward(self) -> None:
        """It has ended; not called where it has raised."""


_listeners: list[weakref.ref[Listener]] = []
"""State of the process, which keeps nothing alive."""
_replacement: Any = None
_original: Any = None


def listen(listener: Listener) -> None:
    """Have `listener` called around each backward, until `ignore` is called with it or it is gone."""
    global _original, _replacement
    if not _listeners and torch.autograd.backward is not _replacement:
        _original, _replacement = torch.autograd.backward, _around(torch.autograd.backward)
        torch.autograd.backward = _replacement
    _listeners.append(weakref.ref(listener))


def ignore(listener: Listener) -> None:
    """The counterpart of `listen`. After the last one torch has its own function back, where nobody put one on top."""
    global _replacement
    _listeners[:] = [one for one in _listeners if one() not in (None, listener)]
    if not _listeners and torch.autograd.backward is _replacement:
        torch.autograd.backward = _original
        _replacement = None


def _around(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(tensors, *args, **kwargs)
        for ref in tuple(_listeners):
            if (listener := ref()) is not None:
                listener.before_backward(tensors)
        result = original(tensors, *args, **kwargs)
        for ref in tuple(_listeners):
            if (listener := ref()) is not None:
                listener.after_backward()
        return result

    return backward
