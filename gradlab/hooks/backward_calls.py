"""Calls of `torch.autograd.backward`: every way to start a backward from a loss comes through it.

`Tensor.backward` looks the function up in `torch.autograd` when it is called, and a GradScaler or a loop calls either.
So one function in its place sees them all, for 1 microsecond a backward while anybody listens. `autograd.grad`
does not come here: it accumulates no gradient.

Belongs here: being called before a backward. Does not: what is read of its graph (`facts`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

Listener = Callable[[Any], None]
"""A bound method, called with what a backward is about to start from: a tensor or several. It may raise only where the
backward is to fail."""

_listeners: list[weakref.WeakMethod[Listener]] = []
"""State of the process, which keeps nothing alive."""
_replacement: Any = None
_original: Any = None


def listen(listener: Listener) -> None:
    """Have `listener` called before each backward, until `ignore` is called with it or its object is gone."""
    global _original, _replacement
    if not _listeners and torch.autograd.backward is not _replacement:
        _original, _replacement = torch.autograd.backward, _around(torch.autograd.backward)
        torch.autograd.backward = _replacement
    _listeners.append(weakref.WeakMethod(listener))


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
        if not torch.compiler.is_compiling():
            for ref in tuple(_listeners):
                if (listener := ref()) is not None:
                    listener(tensors)
        return original(tensors, *args, **kwargs)

    return backward
