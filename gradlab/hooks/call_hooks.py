"""Hooks on modules that no copy of a module takes along: around its call (`CallHook`), and in torch's tables (`Hook`).

`module.compile()` keeps a replacement of `module(...)` in an attribute of the module. A `CallHook` is put into that
attribute and calls what was there before. Against a pair of torch's forward hooks that is half the work a call; it is
outside all hooks of the user's, so that it sees what the caller gets; an exception needs no hook of its own; and torch
takes none of its slower ways because of it.

**A copy of a watched module is an unwatched one**, however it was made. There are three ways to copy the attribute:
- `nn.Module` leaves it out of its own state, so that `deepcopy`, `pickle` and `torch.save` never see it.
- Where a class has a `__getstate__`, `__reduce__` or `__deepcopy__` of its own (RNNs, torch.fx), a call hook copies and
  pickles as what an unwatched module has there: nothing, or its compiled call.
- Where the attributes are handed over as they are (`copy.copy` of such a class, the replicas of nn.DataParallel, any
  `vars(module).copy()`), two modules hold one call hook. It is not given the module that is called, but its count of
  references tells that there is another holder: then the calling frame says which module is called, and a copy runs
  its own forward and loses the call hook.

Not here: what is done with the values that a call hook sees (`taps.forward.modules`, `profiling.ranges`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from sys import getrefcount
from threading import get_ident
from typing import Any

import torch
from torch import nn

CALL_ATTRIBUTE = "_compiled_call_impl"
"""Of a module: what `module(...)` calls where `module.compile()` or a call hook has put something there."""
ORIGINAL_ATTRIBUTE = "_gradlab_original"
"""Of a function that gradlab has put in the place of another: that other."""

# Takes any positional arguments, returns None, and pickles without gradlab: what a copied hook turns into.
_INERT = nullcontext().__exit__


class Hook:
    """A hook in one of torch's tables of a module. Copies and pickles as a callable that does nothing.

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


class OwnThreadHook(ModuleHook):
    """Sees eager calls on the thread that made it alone: others may be calling the model at the same time."""

    __slots__ = ("thread",)

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__(module, function)
        self.thread = get_ident()

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or get_ident() != self.thread:
            return None
        return super().__call__(module, *arguments)


class CallHook:
    """Is called in place of one module and calls `inner`, its own call. Subclasses say what they do around that.

    Their `__call__` ends in `run_unwatched` where nothing may be recorded. Elsewhere it begins by asking whether a copy
    of the module is called, without a function call for the usual answer:

        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
    """

    __slots__ = ("below", "inner", "module", "references")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.below: Any = None
        """What the attribute held before: another call hook, a compiled call, or nothing."""
        self.inner: Callable[..., Any] = module._call_impl
        """`below`, or the plain call where that is nothing."""
        self.references = _NOT_INSTALLED
        """How many references there are during a call, where this is held by the module and by one list beside it."""

    def install(self) -> None:
        """Put it into the module's attribute, around what is there."""
        own = vars(self.module)
        self.below = own.get(CALL_ATTRIBUTE)
        self.inner = self.module._call_impl if self.below is None else self.below
        self.references = _references_in_call()
        own[CALL_ATTRIBUTE] = self

    def remove(self) -> None:
        """Take it out, also from inside call hooks that were installed after it."""
        self.references = _NOT_INSTALLED
        own = vars(self.module)
        outermost = own.get(CALL_ATTRIBUTE)
        if outermost is self:
            if self.below is None:
                del own[CALL_ATTRIBUTE]
            else:
                own[CALL_ATTRIBUTE] = self.below
        while isinstance(outermost, CallHook):
            if outermost.below is self:
                outermost.below, outermost.inner = self.below, self.inner
            outermost = outermost.below

    def run_unwatched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module, or the copy that is called, without a look at it. To be used by `__call__` itself."""
        if torch.compiler.is_compiling():
            return self.inner(*args, **kwargs)
        return (self.call_of_copy(3) or self.inner)(*args, **kwargs)

    def call_of_copy(self, frames_up: int = 2) -> Callable[..., Any] | None:
        """What to call where a copy of the module is called, else None. `frames_up`: how far up torch's frame is."""
        copy = sys._getframe(frames_up).f_locals.get("self")
        if copy is self.module or not isinstance(copy, nn.Module):
            return None
        own = vars(copy)
        if own.get(CALL_ATTRIBUTE) is not self:
            return None
        unwatched = _unwatched(self)
        if unwatched is None:
            del own[CALL_ATTRIBUTE]
            return copy._call_impl
        own[CALL_ATTRIBUTE] = unwatched
        return unwatched  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _unwatched(self)

    def __reduce__(self) -> Any:
        return type(None), ()


_NOT_INSTALLED = -1


class _CountsReferences(CallHook):
    """Counts the references to itself during a call."""

    __slots__ = ("counted",)

    def __call__(self) -> None:
        self.counted = getrefcount(self)


@cache
def _references_in_call() -> int:
    """How many references there are to a call hook during its call: the caller holds some, by Python's version."""
    module = nn.Module()
    held = [_CountsReferences(module)]
    vars(module)[CALL_ATTRIBUTE] = held[0]
    module()
    return held[0].counted


def without_call_hooks(value: Any) -> Any:
    """What a module's attribute would hold without any call hooks: a compiled call, or None."""
    while isinstance(value, CallHook):
        value = value.below
    return value


def _unwatched(value: Any) -> Any:
    """The same, without any other function of gradlab's either."""
    value = without_call_hooks(value)
    return getattr(value, ORIGINAL_ATTRIBUTE, value)


def is_compiled(module: nn.Module) -> bool:
    """Whether a Python hook in a module would break a graph or never run: scripted, or compiled as a whole."""
    return is_scripted(module) or has_compiled_call(module)


def has_compiled_call(module: nn.Module) -> bool:
    """Whether a call of the module runs what `torch.compile(module)` or `module.compile()` has made."""
    if type(module).__name__ == "OptimizedModule":
        return True
    return without_call_hooks(getattr(module, CALL_ATTRIBUTE, None)) is not None


def is_scripted(module: nn.Module) -> bool:
    """Whether a module is of TorchScript."""
    return isinstance(module, torch.jit.ScriptModule)
