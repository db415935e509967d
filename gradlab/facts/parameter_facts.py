"""Parameters of a training: those of the model, and those that its losses reach though the model does not have them.

Belongs here: their names, owners, and what happens to each. Does not: their numbers (`readings`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType, ModuleType
from typing import Any

from torch import Tensor, nn

from gradlab.diagnose.context import ParameterFacts
from gradlab.facts.loss_graph import leaf_of_view
from gradlab.facts.value_flow import Flow
from gradlab.sites.names import module_names

_MOST_FRAMES = 32
_LIST_DEPTH = 3
_TABLES = ("_modules", "_parameters", "_buffers")
_TRAINED = 10
"""What was written to so often before watching began was trained: an initialization writes one to four times."""


class Leaf:
    """A parameter that a loss reaches, and that the model does not have. Held by its id and names only."""

    def __init__(
        self, name: str, module: str, module_class: str, *, in_plain_list: bool = False, is_plain: bool = False
    ) -> None:
        self.name, self.module, self.module_class = name, module, module_class
        self.in_plain_list, self.is_plain = in_plain_list, is_plain


def owners_of(model: nn.Module) -> dict[int, tuple[str, str]]:
    """By id of each parameter: the name and the class of the module that owns it."""
    found: dict[int, tuple[str, str]] = {}
    for module, name in module_names(model).items():
        for p in module._parameters.values():
            if p is not None:
                found.setdefault(id(p), (name, type(module).__name__))
    return found


def foreign_leaves(model: nn.Module, leaves: Iterable[Tensor], *, everywhere: bool) -> dict[int, Leaf]:
    """Who owns some parameters that are not the model's, by id; those of nobody are left out.

    Looked for, in this order: in lists, tuples and dicts that are attributes of the model's modules, and in those
    attributes themselves; where `everywhere`, in modules and parameters that are variables of the functions under way
    or of the script, and in any module of the process. Cost: up to 50 ms.
    """
    wanted = {id(one): isinstance(one, nn.Parameter) for one in leaves}
    found: dict[int, Leaf] = {}
    _take_attributes(model, "", wanted, found)
    for variable, value in _variables() if everywhere else ():
        if not any(is_parameter and key not in found for key, is_parameter in wanted.items()):
            break
        if isinstance(value, nn.Module):
            _take(value, variable, wanted, found)
            _take_attributes(value, variable, wanted, found)
        elif id(value) in wanted:
            found.setdefault(id(value), Leaf(variable, "", ""))
    if everywhere and any(is_parameter and key not in found for key, is_parameter in wanted.items()):
        for one in gc.get_objects():
            if issubclass(type(one), nn.Module) and "_parameters" in vars(one):
                _take(one, type(one).__name__, wanted, found, deep=False)
    return found


def _take(
    module: nn.Module,
    path: str,
    wanted: Mapping[int, bool],
    found: dict[int, Leaf],
    *,
    in_plain_list: bool = False,
    deep: bool = True,
) -> None:
    owners = module_names(module).items() if deep else [(module, "")]
    for owner, name in owners:
        for key, p in owner._parameters.items():
            if p is not None and id(p) in wanted and id(p) not in found:
                where = ".".join(filter(None, (path, name)))
                found[id(p)] = Leaf(f"{where}.{key}", where, type(owner).__name__, in_plain_list=in_plain_list)


def _take_attributes(module: nn.Module, path: str, wanted: Mapping[int, bool], found: dict[int, Leaf]) -> None:
    """Those that are attributes of a module's modules, or in containers that are, and so in none of its tables."""
    for owner, name in module_names(module).items():
        where = ".".join(filter(None, (path, name)))
        for key, value in vars(owner).items():
            if key in _TABLES or not isinstance(value, Tensor | list | tuple | dict):
                continue
            for inner_path, inner in _contents(value, f"{where}.{key}" if where else key):
                if isinstance(inner, nn.Module):
                    _take(inner, inner_path, wanted, found, in_plain_list=True)
                elif (leaf := leaf_of_view(inner)) is not None and id(leaf) in wanted:
                    is_alone = inner is value
                    one = Leaf(inner_path, where, type(owner).__name__, in_plain_list=not is_alone, is_plain=is_alone)
                    found.setdefault(id(leaf), one)


def _contents(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """A module or tensor, or those in a list, tuple or dict, with the names that registering would give them."""
    if isinstance(value, nn.Module | Tensor):
        yield path, value
    elif depth <= _LIST_DEPTH:
        if type(value) in (list, tuple):
            for place, inner in enumerate(value):
                yield from _contents(inner, f"{path}.{place}", depth + 1)
        elif type(value) is dict:
            for key, inner in value.items():
                yield from _contents(inner, f"{path}.{key}", depth + 1)


def _variables() -> Iterator[tuple[str, nn.Module | Tensor]]:
    """The modules and parameters that are variables of the functions under way, innermost first, then of the script.

    Those in lists, and those that are attributes of objects, count as variables.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            break
        if not frame.f_globals.get("__name__", "").startswith(("gradlab.", "torch.")):
            for name, value in list(frame.f_locals.items()):
                yield from _contents(value, name)
                own = getattr(value, "__dict__", None)
                if type(own) is dict and not isinstance(value, nn.Module | Tensor | ModuleType | type):
                    for key, inner in list(own.items()):
                        yield from _contents(inner, key)
        frame = frame.f_back
    for name, value in list(vars(sys.modules["__main__"]).items()):
        yield from _contents(value, name)


def facts_of(
    names: Mapping[str, nn.Parameter],
    owners: Mapping[int, tuple[str, str]],
    foreign: Mapping[int, Leaf],
    *,
    optimizers: Mapping[int, tuple[int, ...]],
    reached: set[int],
    arrived: set[int],
    versions: Mapping[int, int],
    moved: set[int],
    loaded: set[int],
    frozen: set[int],
    distributions: Mapping[str, bool],
    random: Mapping[str, bool],
    called: Mapping[str, bool],
    flow: Flow,
    is_flow_told: bool,
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
        moved: ids of those whose values have changed, as far as that was looked at.
        loaded: ids of those that a state was loaded into.
        frozen: ids of those that did not require grad at some look.
        distributions: by name, whether it is still as torch initialises it.
        random: by name, whether it looks like independent random numbers.
        called: by module, whether it was called.
        flow: where values of parameters went in the passes that were followed.
        is_flow_told: whether these were passes in which a parameter without gradient could be looked for.
        leaves: weak references to those that are not the model's, by id.
    """
    every = {id(p): name for name, p in names.items()} | {key: leaf.name for key, leaf in foreign.items()}
    everything: list[tuple[str, Any, str, str, Leaf | None]]
    everything = [(name, p, *owners.get(id(p), ("", "")), None) for name, p in names.items()]
    for key, leaf in foreign.items():
        if (p := leaves[key]()) is not None:
            everything.append((leaf.name, p, leaf.module, leaf.module_class, leaf))
    return tuple(
        ParameterFacts(
            name=name,
            module=module,
            module_class=module_class,
            shape=_shape(p),
            requires_grad=p.requires_grad,
            is_in_model=leaf is None,
            is_in_plain_list=leaf is not None and leaf.in_plain_list,
            is_plain=leaf is not None and leaf.is_plain,
            optimizers=optimizers.get(id(p), ()),
            is_reached=id(p) in reached,
            has_gradient_arrived=id(p) in arrived,
            is_changed_in_place=p._version != versions.get(id(p), p._version) or id(p) in moved,
            was_trained=versions.get(id(p), 0) >= _TRAINED or id(p) in loaded,
            was_frozen=id(p) in frozen,
            is_at_default_init=distributions.get(name),
            looks_random=random.get(name),
            is_called=called.get(module),
            **_flow_facts(id(p), flow, every, is_told=is_flow_told),
        )
        for name, p, module, module_class, leaf in everything
    )


def _shape(p: Tensor) -> tuple[int, ...]:
    """Its shape; () where it has none yet (lazy), or none at all (nested)."""
    return () if p.is_nested or isinstance(p, nn.UninitializedParameter) else tuple(p.shape)


def _flow_facts(key: int, flow: Flow, names: Mapping[int, str], *, is_told: bool) -> dict[str, Any]:
    """What following values has shown of one parameter."""
    cut_by, before = flow.cut.get(key, ("", None))
    return {
        "is_used": key in flow.used if is_told else None,
        "is_cut": key in flow.cut,
        "cut_by": cut_by,
        "cut_before": names.get(before, "") if before is not None else "",
        "num_detached_calls": 0 if key in flow.recurrent else flow.detached_calls.get(key, 0),
    }
