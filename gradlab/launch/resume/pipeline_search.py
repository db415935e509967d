"""Everything in a data pipeline that remembers something from one batch to the next, and where it is held.

A pipeline is searched from the parts of its loader: attributes, containers, closures, and the globals that its code
names. What keeps a place that nobody can read, such as an open iterator, is listed as hidden, for a warning. How the
state of what was found is taken and put back is in `data_state`.
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import IOBase
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Roots = Mapping[str, Any]
"""The parts of a pipeline by name: `sampler`, `batch_sampler`, `generator`, `dataset`, `collate_fn`."""


SCALARS = (int, float, complex, bool, str, bytes, type(None))
_SAMPLERS = ("sampler", "batch_sampler")
_MOST_OBJECTS = 10_000
_MOST_ITEMS = 64
"""A longer list is taken for samples, not for parts of the pipeline."""
_OPAQUE = (types.ModuleType, type, Tensor, np.ndarray, DataLoader, pl.Trainer, *SCALARS)


@dataclass
class Found:
    """Everything in a pipeline that remembers something."""

    generators: dict[str, Any] = field(default_factory=dict)
    stateful: dict[str, Any] = field(default_factory=dict)
    samplers: dict[str, Any] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    """What cannot be taken, and why."""
    objects: dict[str, Any] = field(default_factory=dict)
    """Every object that was looked into."""


def search_pipeline(roots: Roots) -> Found:
    """Look through a pipeline, breadth first and each object once."""
    found = Found()
    seen = {id(roots.get("dataset"))}
    waiting = deque(sorted(roots.items(), key=lambda item: item[0] == "dataset"))
    dataset = roots.get("dataset")
    while waiting and len(seen) < _MOST_OBJECTS:
        path, value = waiting.popleft()
        is_root = path == "dataset"
        if isinstance(value, _OPAQUE) or (id(value) in seen and not is_root) or (value is dataset and not is_root):
            continue
        seen.add(id(value))
        if _is_generator(value):
            found.generators[path] = value
            continue
        if not _note(found, path, value):
            continue
        found.objects[path] = value
        waiting.extend((f"{path}.{name}", child) for name, child in _children(value))
    return found


def _is_generator(value: object) -> bool:
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
    return isinstance(value, kinds) and not isinstance(value, random.SystemRandom)


def _note(found: Found, path: str, value: Any) -> bool:
    """Write down what `value` is; whether to look into it."""
    if isinstance(value, random.SystemRandom):
        found.hidden[path] = "draws from the operating system, which cannot be made to repeat itself"
        return False
    in_sampler = path.partition(".")[0] in _SAMPLERS
    if is_stateful(value) and not in_sampler and not isinstance(value, nn.Module):
        found.stateful[path] = value
        return True
    if isinstance(value, Iterator) and not isinstance(value, IOBase):
        found.hidden[path] = f"is an open iterator ({type(value).__name__}), whose place cannot be read"
        return False
    if in_sampler and hasattr(value, "__dict__") and not callable(value):
        found.samplers[path] = value
    return True


def is_stateful(value: object) -> bool:
    """Whether a value says its state and takes it back."""
    named = (getattr(type(value), "state_dict", None), getattr(type(value), "load_state_dict", None))
    return all(callable(method) for method in named)


def _children(value: Any) -> list[tuple[str, Any]]:
    """The parts of an object that may remember something, by name."""
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()] if len(value) <= _MOST_ITEMS else []
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [(str(index), item) for index, item in enumerate(value)] if len(value) <= _MOST_ITEMS else []
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, types.MethodType):
        return [("self", value.__self__), ("func", value.__func__)]
    if isinstance(value, types.FunctionType):
        return [*_enclosed(value), *_globals(value)]
    slots = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
    own = [(name, getattr(value, name)) for name in slots] + list(getattr(value, "__dict__", {}).items())
    return own + [pair for function in _functions(type(value)) for pair in _globals(function)]


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))


def _functions(cls: type) -> list[types.FunctionType]:
    """The functions of a class that somebody has written, with those of its bases; not torch's."""
    classes = [each for each in cls.__mro__ if each.__module__.partition(".")[0] not in ("torch", "builtins", "typing")]
    return [member for each in classes for member in vars(each).values() if isinstance(member, types.FunctionType)]


def _enclosed(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function holds in its closure and its defaults."""
    held: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held.append((name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    defaults = {str(index): value for index, value in enumerate(function.__defaults__ or ())}
    return held + list((defaults | (function.__kwdefaults__ or {})).items())


def _globals(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The random generators among the globals that a function's code names."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    named = ((name, function.__globals__.get(name)) for name in sorted(names))
    return [(f"globals.{name}", value) for name, value in named if _is_generator(value)]
