"""The tensors inside a value that a module is given or returns: a tensor, or nested containers of them.

Belongs here: finding and replacing them, by the suffix that their site's name gets. Does not: which module the value
belongs to (`names`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from gradlab.hooks.interpreter import without_torch_function


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


def first_differentiable(value: Any) -> Tensor | None:
    """The first tensor of a module's output that requires grad: a backward comes through it."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else None
    return next((tensor for _, tensor in leaves(value) if tensor.requires_grad), None)


def has_floating(value: Any) -> bool:
    """Whether there is a tensor in a value that may have a gradient."""
    with without_torch_function():  # these questions are no ops of the user's
        return any(t.is_floating_point() or t.is_complex() for _, t in leaves(value))
