"""Which model an optimizer trains: found when a module that owns its parameters is called for the first time, or else
when the optimizer is about to step.

Earlier, a model may still be moved, sharded or wrapped; later, its first step would be lost. Until then
`Module.__call__` has a line more; torch's global module hooks would be too late, since a module's call is under way
when they run.

What counts as the model is decided here once, by `ModelSearch`:

- It **outlives a step**: a module that was built after the optimizer, as `Loss(net)` that a loop makes anew or the
  wrapper of an ODE solver, cannot be where the optimizer has its parameters from.
- It is **what is called**: of the modules that have all the parameters, the one whose call began. A head that is
  fine-tuned alone is part of the model that is called, and so are the halves of a network with an optimizer each.
- Where parts of it are called alone it is the smallest module that has all the parameters; where none was called as a
  module (functional calls, classes with a `__call__` of their own, optimizers that are made after the first backward)
  it has all that the backward has reached, too. Of several with the same parameters it is the outermost.
- Where no module has all the parameters, as of an encoder and a decoder with one optimizer, there are **several
  models**.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradlab.optimizers import parameters_of
from gradlab.sites.names import unwrapped


class FirstCall:
    """Tells of each call of a module, before it begins, as long as it is on."""

    def __init__(self, tell: Callable[[nn.Module], None]) -> None:
        self.tell = tell
        self._before: Any = None
        self._ours: Any = None

    def begin(self) -> None:
        """Tell from now on."""
        if self._ours is not None:
            return
        before = self._before = nn.Module.__call__
        tell = self.tell

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            tell(module)
            return before(module, *args, **kwargs)

        self._ours = __call__
        nn.Module.__call__ = __call__  # type: ignore[method-assign]

    def end(self) -> None:
        """No longer tell. What somebody has put on top of ours meanwhile stays."""
        if self._ours is not None and nn.Module.__call__ is self._ours:
            nn.Module.__call__ = self._before  # type: ignore[method-assign]
            self._ours = None


class Ages:
    """Which modules were built after which moment.

    A module that was copied or unpickled, or built before `install`, counts as old.
    """

    def __init__(self) -> None:
        self.now = 0
        self._born: dict[int, int] = {}  # by id: that of a module that is gone is overwritten by the next one there
        self._is_installed = False

    def install(self) -> None:
        """Number the modules that are built from now on."""
        if self._is_installed:
            return
        self._is_installed = True
        build = nn.Module.__init__

        @functools.wraps(build)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if not torch.compiler.is_compiling():
                self.now += 1
                self._born[id(module)] = self.now
            build(module, *args, **kwargs)

        nn.Module.__init__ = __init__  # type: ignore[assignment, method-assign]

    def is_younger(self, module: nn.Module, than: int) -> bool:
        """Whether a module was built after a moment, which is a value of `now`."""
        return self._born.get(id(module), 0) > than


class ModelSearch:
    """All modules that own some parameters, and all that contain those: one walk over Python's objects, some 50 ms.

    Args:
        wanted: ids of the parameters.
        called: the module whose call begins, where that is why somebody searches.
        ages: which modules are how old.
    """

    def __init__(self, wanted: set[int], called: nn.Module | None, ages: Ages) -> None:
        parents: dict[int, list[nn.Module]] = {}
        owners: list[nn.Module] = []
        self.owned: set[int] = set()
        """The wanted parameters that are in a module at all."""
        for module in _all_modules():
            own = vars(module)
            for child in own["_modules"].values():
                if child is not None:
                    parents.setdefault(id(child), []).append(module)
            mine = {id(p) for p in own["_parameters"].values()} & wanted
            if mine:
                owners.append(module)
                self.owned |= mine
        self._modules = [one for one in _upwards(owners, parents) if unwrapped(one) is one]
        self._parameters: dict[int, set[int]] = {}
        self._called, self._ages = called, ages

    def models_of(self, wanted: set[int], made: int) -> list[nn.Module]:
        """The models that have some of the parameters together, the largest share first; none where no module has any.

        Args:
            wanted: ids of parameters, of those that were searched for.
            made: when their optimizer was made, by `ages.now`.
        """
        found: list[nn.Module] = []
        left = wanted & self.owned
        while left:
            model = self._best(left, made)
            found.append(model)
            left = left - self._parameters_of(model)
        return found

    def is_called(self, model: nn.Module, made: int) -> bool:
        """Whether the call that begins is this model's, by way of wrappers that were made for it or not."""
        return self._called is not None and any(one is model for one in self._entered(self._called, made))

    def _best(self, wanted: set[int], made: int) -> nn.Module:
        """The model that has all of the parameters, or as many of them as any."""
        some = [one for one in self._modules if wanted & self._parameters_of(one)]
        # All may be young, where a model was built around the parameters of another.
        some = [one for one in some if not self._ages.is_younger(one, made)] or some
        most = max(len(wanted & self._parameters_of(one)) for one in some)
        covering = [one for one in some if len(wanted & self._parameters_of(one)) == most]
        if self._called is None:
            reached = {id(one): self._num_reached(one) for one in covering}
            covering = [one for one in covering if reached[id(one)] == max(reached.values())]
        elif entered := [one for one in covering if self.is_called(one, made)]:
            covering = entered
        size = min(len(self._parameters_of(one)) for one in covering)
        alike = [one for one in some if len(self._parameters_of(one)) == size and self._contains_any(one, covering)]
        return max(alike, key=lambda one: sum(1 for _ in one.modules()))

    def _entered(self, called: nn.Module, made: int) -> list[nn.Module]:
        """A called module, or where it was made anew those that it wraps."""
        inner = unwrapped(called)
        if not self._ages.is_younger(inner, made):
            return [inner]
        return [one for child in inner.children() for one in self._entered(child, made)]

    def _contains_any(self, module: nn.Module, ones: Sequence[nn.Module]) -> bool:
        inside = {id(one) for one in module.modules()}
        return any(id(one) in inside for one in ones)

    def _num_reached(self, module: nn.Module) -> int:
        return sum(p.is_leaf and p.grad is not None for p in module.parameters())

    def _parameters_of(self, module: nn.Module) -> set[int]:
        known = self._parameters.get(id(module))
        if known is None:
            known = self._parameters[id(module)] = {id(p) for p in module.parameters()}
        return known


def touches(module: nn.Module, wanted: set[int]) -> bool:
    """Whether a module has one of the parameters, and all that it has exist by now."""
    parameters = list(module.parameters())
    return any(id(p) in wanted for p in parameters) and not any(is_lazy(p) for p in parameters)


def is_ready(optimizer: Optimizer) -> bool:
    """Whether all parameters of an optimizer exist by now."""
    return not any(is_lazy(p) for p in parameters_of(optimizer))


def _all_modules() -> list[nn.Module]:
    """Every module of the process; one that is being built may lack its tables."""
    found = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    return [one for one in found if "_modules" in vars(one) and "_parameters" in vars(one)]


def _upwards(owners: Iterable[nn.Module], parents: dict[int, list[nn.Module]]) -> list[nn.Module]:
    """Some modules and all that contain them."""
    found: dict[int, nn.Module] = {}
    waiting = list(owners)
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += parents.get(id(module), [])
    return list(found.values())
