"""Standing in for a module's call: how gradlab sees what goes through a module, for the steps on which a tap is due.

A stand-in takes the place that `module.compile()` has made for a replacement of `module(...)`, and goes on to what was
there. Against a pair of forward hooks that is half the work a call, it is outside all hooks of the user's (so it sees
what the caller gets), an exception needs no hook of its own, and `torch` takes none of its slower ways because of it.

**A copy of a watched module is an unwatched one**, however it was made. Three ways lead there:
- `nn.Module` leaves the place out of its own state, so that `deepcopy`, `pickle` and `torch.save` never see it.
- Where a class has a `__getstate__`, `__reduce__` or `__deepcopy__` of its own (RNNs, torch.fx), a stand-in copies and
  pickles as what an unwatched module has there: nothing, or its compiled call.
- Where the attributes are handed over as they are (`copy.copy` of such a class, the replicas of nn.DataParallel, any
  `vars(module).copy()`), two modules hold one stand-in. Nobody tells it who calls, but its count of references does
  tell that there are others: then the calling frame says which module it is, and a copy runs its own forward and
  loses the stand-in.

Not here: what is done with what is seen (`modules`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from sys import getrefcount
from typing import Any

import torch
from torch import nn

PLACE = "_compiled_call_impl"
MARK = "_gradlab_original"
"""The attribute of a function of gradlab's that has the one whose place it took."""

# Takes any positional arguments, returns None, and pickles without gradlab: what a copied hook turns into.
_INERT = nullcontext().__exit__


class Hook:
    """A hook on a module. Copies and pickles as a callable that does nothing.

    A copy that shares the tables of hooks (nn.DataParallel, `copy.copy`) calls the hook itself: it has to compare the
    module that it is given with its own.
    """

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _INERT

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


class ModuleHook(Hook):
    """Calls a function where its own module runs, and no copy of it."""

    __slots__ = ("function", "module")

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.module, self.function = module, function

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        return self.function(module, *arguments) if module is self.module else None


class StandIn:
    """Stands in for the call of one module, and goes on to `inner`. Subclasses say what they do around that.

    Their `__call__` goes on by `unseen` where it sees nothing. Elsewhere it begins with the question whether a copy
    calls, without a function of its own for the usual answer:

        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
    """

    __slots__ = ("below", "inner", "module", "references")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.below: Any = None
        """What was there before: another stand-in, a compiled call, or nothing."""
        self.inner: Callable[..., Any] = module._call_impl
        self.references = _IN_NO_PLACE
        """How many references there are during a call where the module alone holds this, and one list beside it."""

    def put(self) -> None:
        """Take the place, on top of what is there."""
        own = vars(self.module)
        self.below = own.get(PLACE)
        self.inner = self.module._call_impl if self.below is None else self.below
        self.references = _references()
        own[PLACE] = self

    def take(self) -> None:
        """Leave the place, from under what has come on top of it since."""
        self.references = _IN_NO_PLACE
        own = vars(self.module)
        top = own.get(PLACE)
        if top is self:
            if self.below is None:
                del own[PLACE]
            else:
                own[PLACE] = self.below
        while isinstance(top, StandIn):
            if top.below is self:
                top.below, top.inner = self.below, self.inner
            top = top.below

    def unseen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of the module, or of the copy that calls, without a look at it; asked for by `__call__`."""
        if torch.compiler.is_compiling():
            return self.inner(*args, **kwargs)
        return (self.call_of_copy(3) or self.inner)(*args, **kwargs)

    def call_of_copy(self, frames_up: int = 2) -> Callable[..., Any] | None:
        """Asked by `__call__`: what runs instead, where it is a copy of the module that calls; None where it is not."""
        copy = sys._getframe(frames_up).f_locals.get("self")
        if copy is self.module or not isinstance(copy, nn.Module):
            return None
        own = vars(copy)
        if own.get(PLACE) is not self:
            return None
        unwatched = _unwatched(self)
        if unwatched is None:
            del own[PLACE]
            return copy._call_impl
        own[PLACE] = unwatched
        return unwatched  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _unwatched(self)

    def __reduce__(self) -> Any:
        return type(None), ()


_IN_NO_PLACE = -1


class _Counting(StandIn):
    """Counts the references to itself during a call."""

    __slots__ = ("counted",)

    def __call__(self) -> None:
        self.counted = getrefcount(self)


@cache
def _references() -> int:
    """How many references there are to a stand-in during its call: what calls holds some, by Python's version."""
    module = nn.Module()
    held = [_Counting(module)]
    vars(module)[PLACE] = held[0]
    module()
    return held[0].counted


def beneath(value: Any) -> Any:
    """What stands under any stand-ins: a compiled call, or None."""
    while isinstance(value, StandIn):
        value = value.below
    return value


def _unwatched(value: Any) -> Any:
    """What would be there without gradlab."""
    value = beneath(value)
    return getattr(value, MARK, value)


def is_compiled(module: nn.Module) -> bool:
    """Whether a Python hook in a module would break a graph or never run."""
    if is_scripted(module) or type(module).__name__ == "OptimizedModule":
        return True
    return beneath(getattr(module, PLACE, None)) is not None


def is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)
