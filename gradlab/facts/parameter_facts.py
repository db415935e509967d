"""Parameters of a training: those of the model, and those that its losses reach though the model does not have them.

Belongs here: their names, owners, and what happens to each. Does not: their numbers (`readings`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.diagnose.context import ParameterFacts
from gradlab.facts.numbers import Numbers
from gradlab.facts.readings import is_readable
from gradlab.sites.names import module_names

_MOST_FRAMES = 32
_FEWEST_FOR_INIT = 64
"""Of fewer numbers the distribution cannot be told."""
_LIST_DEPTH = 3


class Leaf:
    """A parameter that a loss reaches, and that the model does not have. Held by its id and names only."""

    def __init__(self, name: str, module: str, module_class: str, *, in_plain_list: bool) -> None:
        self.name, self.module, self.module_class = name, module, module_class
        self.in_plain_list = in_plain_list


def owners_of(model: nn.Module) -> dict[int, tuple[str, str]]:
    """By id of each parameter: the name and the class of the module that owns it."""
    found: dict[int, tuple[str, str]] = {}
    for module, name in module_names(model).items():
        for p in module._parameters.values():
            if p is not None:
                found.setdefault(id(p), (name, type(module).__name__))
    return found


def foreign_leaves(model: nn.Module, leaves: Iterable[Tensor]) -> dict[int, Leaf]:
    """Who owns some parameters that are not the model's, by id; those of nobody are left out.

    Looked for, in this order, in lists, tuples and dicts that are attributes of the model's modules; in modules that
    are variables of the functions under way or of the script; in any module of the process. Cost: up to 50 ms.
    """
    wanted = {id(one) for one in leaves if isinstance(one, nn.Parameter)}
    found: dict[int, Leaf] = {}
    for module, name in module_names(model).items():
        for key, value in vars(module).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                prefix = f"{name}.{key}" if name else key
                for path, inner in _modules_in(value, prefix):
                    _take(inner, path, wanted, found, in_plain_list=True)
    for variable, module in _variables():
        if wanted - found.keys():
            _take(module, variable, wanted, found, in_plain_list=False)
            for owner, name in module_names(module).items():
                for key, value in vars(owner).items():
                    if key not in ("_modules", "_parameters", "_buffers"):
                        for path, inner in _modules_in(value, ".".join(filter(None, (variable, name, key)))):
                            _take(inner, path, wanted, found, in_plain_list=True)
    if wanted - found.keys():
        for one in gc.get_objects():
            if issubclass(type(one), nn.Module) and "_parameters" in vars(one):
                _take(one, type(one).__name__, wanted, found, in_plain_list=False, deep=False)
    return found


def _take(
    module: nn.Module, path: str, wanted: set[int], found: dict[int, Leaf], *, in_plain_list: bool, deep: bool = True
) -> None:
    owners = module_names(module).items() if deep else [(module, "")]
    for owner, name in owners:
        for key, p in owner._parameters.items():
            if p is not None and id(p) in wanted and id(p) not in found:
                where = ".".join(filter(None, (path, name)))
                found[id(p)] = Leaf(f"{where}.{key}", where, type(owner).__name__, in_plain_list=in_plain_list)


def _modules_in(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """The modules in a list, tuple or dict, with the names that they would have in a ModuleList or ModuleDict."""
    if depth > _LIST_DEPTH:
        return
    pairs: Iterable[tuple[Any, Any]] = ()
    if type(value) in (list, tuple):
        pairs = enumerate(value)
    elif type(value) is dict:
        pairs = value.items()
    for key, inner in pairs:
        if isinstance(inner, nn.Module):
            yield f"{path}.{key}", inner
        else:
            yield from _modules_in(inner, f"{path}.{key}", depth + 1)


def _variables() -> Iterator[tuple[str, nn.Module]]:
    """The modules that are variables of the functions under way, innermost first, then those of the script."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            break
        if not frame.f_globals.get("__name__", "").startswith(("gradlab.", "torch.")):
            for name, value in list(frame.f_locals.items()):
                if isinstance(value, nn.Module):
                    yield name, value
                elif isinstance(value, list | tuple | dict):
                    yield from _modules_in(value, name)
        frame = frame.f_back
    for name, value in list(vars(sys.modules["__main__"]).items()):
        if isinstance(value, nn.Module):
            yield name, value


class Distributions:
    """Whether matrices still have the distribution of torch's default init, read once, some steps later.

    `nn.Linear` and convolutions draw from U(-b, b) with b = 1 / sqrt(fan_in): the largest magnitude is b, and the
    kurtosis is 1.8. After a hundred steps of training neither holds.
    """

    def __init__(self) -> None:
        self._pending: dict[str, tuple[int, int]] = {}
        self._known: dict[str, bool] = {}

    def look(self, parameters: Mapping[str, Tensor], numbers: Numbers) -> None:
        """Begin to read these, as far as they are not known yet."""
        for name, p in parameters.items():
            if name in self._known or name in self._pending or not is_readable(p):
                continue
            if p.dim() < 2 or p.numel() < _FEWEST_FOR_INIT:
                continue
            values = p.detach().to(torch.float32)
            squares = values.square()
            kurtosis = squares.square().mean() / squares.mean().square()
            numbers.add(("init", name), torch.stack([values.abs().amax(), kurtosis]))
            self._pending[name] = (p[0].numel(), p.numel())

    def take(self, values: Mapping[Hashable, np.ndarray]) -> None:
        """Numbers of a look have arrived."""
        for name, (fan_in, numel) in list(self._pending.items()):
            if (found := values.get(("init", name))) is not None:
                reach = found[0] * np.sqrt(fan_in)
                is_uniform = abs(found[1] - 1.8) < 4 * 1.6 / np.sqrt(numel) + 0.02
                self._known[name] = bool(is_uniform and 1 - 12 / numel - 0.005 <= reach <= 1.001)
                del self._pending[name]

    def known(self) -> Mapping[str, bool]:
        """By name, as far as it is known."""
        return self._known


def facts_of(
    names: Mapping[str, nn.Parameter],
    owners: Mapping[int, tuple[str, str]],
    foreign: Mapping[int, Leaf],
    *,
    optimizers: Mapping[int, tuple[int, ...]],
    reached: set[int],
    arrived: set[int],
    versions: Mapping[int, int],
    distributions: Mapping[str, bool],
    called: Mapping[str, bool],
    leaves: Mapping[int, Any],
) -> tuple[ParameterFacts, ...]:
    """The facts of the model's parameters, then of those that are not the model's.

    Args:
        names: the model's parameters.
        owners: by id, the module that owns a parameter and its class.
        foreign: by id, those that are not the model's.
        optimizers: by id, the places of the optimizers that have a parameter.
        reached: ids of those that a backward reaches.
        arrived: ids of those that have had a gradient.
        versions: by id, the version counter when watching began.
        distributions: by name, whether it is still as torch initialises it.
        called: by module, whether it was called.
        leaves: weak references to those that are not the model's, by id.
    """
    found = []
    for name, p in names.items():
        module, module_class = owners.get(id(p), ("", ""))
        found.append(
            ParameterFacts(
                name=name,
                module=module,
                module_class=module_class,
                shape=_shape(p),
                requires_grad=p.requires_grad,
                is_in_model=True,
                optimizers=optimizers.get(id(p), ()),
                is_reached=id(p) in reached,
                has_gradient_arrived=id(p) in arrived,
                is_changed_in_place=p._version != versions.get(id(p), p._version),
                is_at_default_init=distributions.get(name),
                is_called=called.get(module),
            )
        )
    for key, leaf in foreign.items():
        p = leaves[key]()
        if p is not None:
            found.append(
                ParameterFacts(
                    name=leaf.name,
                    module=leaf.module,
                    module_class=leaf.module_class,
                    shape=_shape(p),
                    requires_grad=p.requires_grad,
                    is_in_model=False,
                    is_in_plain_list=leaf.in_plain_list,
                    optimizers=optimizers.get(key, ()),
                    is_reached=key in reached,
                    has_gradient_arrived=key in arrived,
                    is_changed_in_place=p._version != versions.get(key, p._version),
                    is_at_default_init=distributions.get(leaf.name),
                )
            )
    return tuple(found)


def _shape(p: Tensor) -> tuple[int, ...]:
    """Its shape; () where it has none yet (lazy), or none at all (nested)."""
    return () if p.is_nested or isinstance(p, nn.UninitializedParameter) else tuple(p.shape)
