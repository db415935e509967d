"""Site names, the patterns that choose among them, and the tensors inside a module's output.

Belongs here: pure naming. Does not: hooks, or any decision about what to do at a site.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from gradlab.errors import TapError, did_you_mean
from gradlab.identity import IdentityDict, IdentitySet

# A wrapper owns one module under this attribute and has no name of its own.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_original_module",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside any wrappers of DDP, FSDP, compile, checkpoint or Fabric."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps. FSDP2 gives each module that it shards a class of its own, derived from the one before."""
    names = (_WRAPPERS.get(cls.__name__) for cls in type(module).__mro__)
    found = (getattr(module, name, None) for name in names if name is not None)
    return next((one for one in found if isinstance(one, nn.Module)), None)


def all_modules(model: nn.Module) -> IdentitySet[nn.Module]:
    """Every module inside, wrappers of parts included: what `modules()` gives, without asking any for its hash."""
    found = IdentitySet([model])
    queue = [model]
    for module in queue:
        for child in module._modules.values():
            if child is not None and child not in found:
                found.add(child)
                queue.append(child)
    return found


def module_names(model: nn.Module) -> IdentityDict[nn.Module, str]:
    """Every module of `model` with its qualified name ("" is the model), in definition order, without wrappers.

    A module reachable under two names has the first.
    """
    names: IdentityDict[nn.Module, str] = IdentityDict()

    def walk(module: nn.Module, name: str) -> None:
        module = unwrapped(module)
        if module in names:
            return
        names[module] = name
        for child_name, child in module._modules.items():
            if child is not None:
                walk(child, f"{name}.{child_name}" if name else child_name)

    walk(model, "")
    return names


def parameter_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter under its first qualified name, in definition order, without wrappers."""
    seen: set[int] = set()
    names: dict[str, nn.Parameter] = {}
    for module, path in module_names(model).items():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                names[f"{path}.{name}" if path else name] = parameter
    return names


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def match(pattern: str, name: str) -> bool:
    """Whether a glob matches a whole site name. Only `*` and `?` are wild; case counts."""
    return _regex(pattern).fullmatch(name) is not None


_CALL_NUMBER = re.compile(r"#\d+")


def without_call_number(name: str) -> str:
    """`encoder#2/relu` as `encoder/relu`."""
    return _CALL_NUMBER.sub("", name)


def numbered(name: str, number: int) -> str:
    """The name of the first, second, ... call of one name in a forward: `encoder`, then `encoder#2`."""
    return name if number == 1 else f"{name}#{number}"


def op_site(module_site: str, op: str, number: int) -> str:
    """The site of a functional op; `number` others of its name came before: `encoder/relu`, then `encoder/relu_1`."""
    return f"{module_site}/{op}_{number}" if number else f"{module_site}/{op}"


class CallNumbers:
    """Numbers the calls of one forward, each name for itself."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def next(self, name: str) -> str:
        """The name of its next call: `encoder`, then `encoder#2`."""
        number = self._calls[name] = self._calls.get(name, 0) + 1
        return numbered(name, number)

    def clear(self) -> None:
        """Another forward begins."""
        self._calls.clear()


def is_input(name: str) -> bool:
    """Whether a site is the input of a module or of the model."""
    return ":in" in name or name == "input" or name.startswith(("input[", "input#"))


def names_inputs(pattern: str) -> bool:
    """Whether a pattern speaks of inputs: only then does it choose any."""
    return ":in" in pattern or pattern.startswith("input")


def reaches(pattern: str, name: str) -> bool:
    """Whether a pattern chooses a name. An input is nearly always another's output, so `*` leaves inputs out."""
    return match(pattern, name) and (not is_input(name) or names_inputs(pattern))


def is_wild(pattern: str) -> bool:
    """Whether the pattern can match more than one name."""
    return "*" in pattern or "?" in pattern


def chooser(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a name is selected: by at least one pattern, and excluded by none."""
    wanted = [p for p in patterns if not p.startswith("!")]
    unwanted = [p[1:] for p in patterns if p.startswith("!")]

    def chosen(name: str) -> bool:
        return any(reaches(p, name) for p in wanted) and not any(match(p, name) for p in unwanted)

    return chosen


def select(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that the patterns choose, in the order of `names`.

    Raises:
        TapError: if a pattern (an exclusion too) matches no name, or if nothing is left.
    """
    for pattern in patterns:
        require_match(pattern, names)
    chosen = chooser(patterns)
    found = [name for name in names if chosen(name)]
    if not found:
        raise TapError(f"the patterns {', '.join(map(repr, patterns))} together select nothing.")
    return found


def require_match(pattern: str, names: Sequence[str]) -> None:
    """Raise TapError with the near misses if a pattern, or what a `!` pattern excludes, matches no name."""
    bare = pattern.removeprefix("!")
    if not any(reaches(bare, name) for name in names):
        raise TapError(f"no tensor matches {pattern!r}.{did_you_mean(bare, names)} The model has: {shortlist(names)}.")


def shortlist(names: Iterable[str], most: int = 12) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    tail = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + tail if names else "nothing"


def leaves(value: Any, suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a tensor, tuple, list, mapping or dataclass, with its suffix: "", `[1]`, `[logits][0]`."""
    if isinstance(value, Tensor):
        yield suffix, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{suffix}[{key}]")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{suffix}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name, None), f"{suffix}[{field.name}]")


def first_differentiable(value: Any) -> Tensor | None:
    """The first tensor of a module's output that requires grad: a backward comes through it."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else None
    return next((tensor for _, tensor in leaves(value) if tensor.requires_grad), None)


def replace_leaves(value: Any, new: Mapping[str, Tensor], suffix: str = "") -> Any:
    """`value` with the tensors at the given suffixes replaced; the containers are rebuilt only where needed."""
    if not new:
        return value
    if isinstance(value, Tensor):
        return new.get(suffix, value)
    if isinstance(value, Mapping):
        items = {key: replace_leaves(item, new, f"{suffix}[{key}]") for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, tuple | list):
        rebuilt = [replace_leaves(item, new, f"{suffix}[{index}]") for index, item in enumerate(value)]
        return type(value)(*rebuilt) if hasattr(value, "_fields") else type(value)(rebuilt)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            field.name: replace_leaves(getattr(value, field.name), new, f"{suffix}[{field.name}]")
            for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changes)
    return value


def _literal(pattern: str) -> str:
    """What comes before the first wildcard."""
    return pattern.split("*")[0].split("?")[0]


def may_match(pattern: str, name: str) -> bool:
    """Whether a pattern can match the module's own site or anything after it: an item, a call, an input, an op."""
    literal = _literal(pattern)
    if literal == pattern:
        return pattern == name or (pattern.startswith(name) and pattern[len(name)] in "[#:/")
    return name.startswith(literal) or literal.startswith(name) or match(pattern, name)


def may_own_ops(name: str, patterns: Sequence[str]) -> bool:
    """Whether a functional op called in this module can be chosen."""
    for pattern in patterns:
        literal = _literal(pattern)
        if literal == pattern:
            if "/" in pattern and pattern.startswith((f"{name}/", f"{name}#")):
                return True
        elif f"{name}/".startswith(literal) or literal.startswith((f"{name}/", f"{name}#")):
            return True
    return False
