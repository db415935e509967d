"""Standing in for a module's call: how gradlab sees what goes through a module, for the steps on which a tap is due.

A stand-in takes the place that `module.compile()` has made for a replacement of `module(...)`, and goes on to what was
there. Against a pair of forward hooks that is half the work a call, it is outside all hooks of the user's (so it sees
what the caller gets), an exception needs no hook of its own, `torch` takes none of its slower ways because of it, and
`deepcopy`, `pickle` and `torch.save` leave it out by themselves.

Not here: what is done with what is seen (`modules`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

PLACE = "_compiled_call_impl"

# Takes any positional arguments, returns None, and pickles without gradlab: what a copied hook turns into.
_INERT = nullcontext().__exit__


class Hook:
    """A hook on a module. Copies and pickles as a callable that does nothing."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _INERT

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


class StandIn(Hook):
    """Stands in for the call of one module, and goes on to `inner`. Subclasses say what they do around that."""

    __slots__ = ("below", "inner", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.below: Any = None
        """What was there before: another stand-in, a compiled call, or nothing."""
        self.inner: Callable[..., Any] = module._call_impl

    def put(self) -> None:
        """Take the place, on top of what is there."""
        own = vars(self.module)
        self.below = own.get(PLACE)
        self.inner = self.module._call_impl if self.below is None else self.below
        own[PLACE] = self

    def take(self) -> None:
        """Leave the place, from under what has come on top of it since."""
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


def beneath(value: Any) -> Any:
    """What stands under any stand-ins: a compiled call, or None."""
    while isinstance(value, StandIn):
        value = value.below
    return value
