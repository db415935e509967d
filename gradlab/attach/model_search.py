"""Which model an optimizer trains: looked for when a module that owns its parameters is called for the first time, or
else when the optimizer is about to step.

Earlier, a model may still be moved, sharded or wrapped; later, its first step would be lost. When to look is decided by
`watching`; here is what counts as the model:

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

import gc
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradlab.attach.module_hooks import ModuleAges
from gradlab.optimizers import parameters_of
from gradlab.sites.names import unwrapped


class ModelSearch:
    """All modules that own some parameters, and all that contain those: one walk over Python's objects, some 50 ms.

    Args:
        wanted: ids of the parameters.
        called: the module whose call begins, where that is the reason to search.
        ages: when modules were built.
    """

    def __init__(self, wanted: set[int], called: nn.Module | None, ages: ModuleAges) -> None:
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


def has_any(module: nn.Module, wanted: set[int]) -> bool:
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
