"""How long a monitor lives that nobody keeps: as long as its model and, where any were given, one of the optimizers.

Belongs here: who holds a strong reference to whom, and who a weak one. Does not: what is called when the process ends
(`process_end`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gradlab.hooks.call_hooks import Hook

if TYPE_CHECKING:
    from collections.abc import Sequence

_P = ParamSpec("_P")
_R = TypeVar("_R")

_unowned: dict[int, object] = {}
"""What cannot be kept by its model."""


class Owner(Hook):
    """Keeps an object alive for as long as a module lives, by a place among the module's hooks.

    That place is the one table from which an object can be reached through the module alone: a `WeakKeyDictionary`
    keeps its values, and by them its keys, for ever. A module whose monitor refers to it is garbage once nobody else
    has it, and Python's collector sees that. The hook itself does nothing, after `load_state_dict`; copies and pickles
    of the module are without it.
    """

    __slots__ = ("_handle", "held")

    def __init__(self, held: object, module: Any) -> None:
        self.held: object | None = held
        self._handle: Any = None
        try:
            self._handle = module.register_load_state_dict_post_hook(self)
        except Exception:  # a class that takes no hooks: kept for good, as far as nobody closes it
            _unowned[id(held)] = held

    def __call__(self, module: Any, keys: Any) -> None:
        """Called after `load_state_dict`."""

    def let_go(self) -> None:
        """Keep it alive no longer."""
        if self._handle is not None:
            self._handle.remove()
        _unowned.pop(id(self.held), None)
        self.held = None


class Lifetime:
    """Keeps a monitor alive, from `begin` to `end`, while its module lives and its given optimizers are not all gone.

    Args:
        module: the model inside its wrappers.
        counted: gives the optimizers that are counted now.
    """

    def __init__(self, module: Any, counted: Callable[[], Sequence[Any]]) -> None:
        self._module = module
        self._counted = counted
        self._monitor: weakref.ref[object] | None = None
        self._owner: Owner | None = None
        self._optimizers: list[weakref.ref[Any]] = []

    def begin(self, monitor: object) -> None:
        """From now on the module keeps the monitor."""
        self._monitor = weakref.ref(monitor)
        self._owner = Owner(monitor, self._module)
        for optimizer in self._counted():
            self.add(optimizer)

    def add(self, optimizer: Any) -> None:
        """As long as this optimizer lives, the module keeps the monitor, too."""
        died = functools.partial(_optimizer_died, weakref.ref(self))
        with contextlib.suppress(TypeError):  # an object of somebody's own without weak references lives on
            self._optimizers.append(weakref.ref(optimizer, died))
        monitor = self._monitor() if self._monitor is not None else None
        if self._owner is None and monitor is not None:
            self._owner = Owner(monitor, self._module)

    @property
    def is_over(self) -> bool:
        """Whether there were optimizers, and all of them are gone: then only who has the monitor keeps it."""
        return bool(self._optimizers) and all(ref() is None for ref in self._optimizers)

    def optimizer_died(self) -> bool:
        """An optimizer is gone; whether that is why the module keeps the monitor no longer."""
        for one in self._counted():  # another may have taken its place
            self.add(one)
        if not self.is_over or self._owner is None:
            return False
        owner, self._owner = self._owner, None
        owner.let_go()
        return True

    def end(self) -> None:
        """Nobody keeps the monitor any more but who has it."""
        self._monitor = None
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.let_go()
        self._optimizers.clear()


def _optimizer_died(lifetime: weakref.ref[Lifetime], optimizer: object) -> None:
    """The callback of a weak reference to an optimizer."""
    alive = lifetime()
    is_over = alive is not None and alive.optimizer_died()
    del alive
    if is_over:
        gc.collect()  # hooks that have been taken off are full of cycles


class WayBack:
    """The way from the parts of an object back to it, which does not keep it alive: `way()` is the object.

    While the object ends, `held` keeps the way open: Python's collector cuts all weak references before it calls
    `__del__`.
    """

    __slots__ = ("_ref", "held")

    def __init__(self, one: object) -> None:
        self._ref = weakref.ref(one)
        self.held: Any = None

    def __call__(self) -> Any:
        """The object; it lives, or its parts would not."""
        return self.held if self.held is not None else self._ref()

    def __getattr__(self, name: str) -> Any:
        """An attribute of the object."""
        return getattr(self(), name)

    def weakly(self, method: Callable[_P, _R]) -> Callable[_P, _R]:
        """A bound method of the object as a function that does not keep the object alive."""
        function: Any = getattr(method, "__func__")  # noqa: B009  # which a Callable does not declare

        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            result: _R = function(self(), *args, **kwargs)
            return result

        return call
