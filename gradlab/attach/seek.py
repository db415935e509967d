"""Which model an optimizer trains: found when a module that owns its parameters is called for the first time.

Earlier, a model may still be moved, sharded or wrapped; later, its first step would be lost. Until then
`Module.__call__` has a line more; torch's global module hooks would be too late, since a module's call is under way
when they run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradlab.taps.identity import IdentityDict, IdentitySet
from gradlab.taps.sites import unwrapped


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


def parameter_ids(optimizers: Iterable[Optimizer]) -> set[int]:
    """The ids of all parameters that some optimizers own."""
    return {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}


def touches(module: nn.Module, wanted: set[int]) -> bool:
    """Whether a module has one of the parameters, and all that it has exist by now."""
    parameters = list(module.parameters())
    return any(id(p) in wanted for p in parameters) and not any(is_lazy(p) for p in parameters)


def owner_of(wanted: set[int], called: nn.Module | None) -> nn.Module | None:
    """The model that has all parameters of `wanted`: the smallest one; of several, the outermost that is no wrapper.

    Args:
        wanted: ids of parameters.
        called: a module that was called and has some of them: the answer where no module has them all.
    Cost: a walk over Python's objects, some 50 ms, once an optimizer.
    """
    parents: IdentityDict[nn.Module, list[nn.Module]] = IdentityDict()
    owners: list[nn.Module] = []
    for module in _all_modules():
        own = vars(module)
        for child in own["_modules"].values():
            if child is not None:
                parents.setdefault(child, []).append(module)
        if any(id(p) in wanted for p in own["_parameters"].values()):
            owners.append(module)
    covering = [one for one in _upwards(owners, parents) if wanted <= {id(p) for p in one.parameters()}]
    models = {id(inner): inner for inner in map(unwrapped, covering)}.values()
    if not models:
        return called
    return min(models, key=lambda one: (sum(1 for _ in one.parameters()), -sum(1 for _ in one.modules())))


def _all_modules() -> list[nn.Module]:
    """Every module of the process; one that is being built may lack its tables."""
    found = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    return [one for one in found if "_modules" in vars(one) and "_parameters" in vars(one)]


def _upwards(owners: Iterable[nn.Module], parents: Mapping[nn.Module, list[nn.Module]]) -> list[nn.Module]:
    """Some modules and all that contain them."""
    found: IdentitySet[nn.Module] = IdentitySet()
    waiting = list(owners)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += parents.get(module, [])
    return list(found)
