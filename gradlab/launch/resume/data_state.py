"""The state of a data pipeline: what its samplers, data sets and functions remember from one batch to the next.

Four things decide which batches come, and only the first is the same object everywhere:

- the random numbers of the process (`randomness`),
- random generators of the pipeline's own: held as an attribute by the loader, a sampler, the data set or a function,
  in a closure, or as a global that the code of one of them names,
- what a sampler counts and shuffles: every attribute of it that is made of numbers, text and containers of these,
- what a data set says of itself by `state_dict` and takes back by `load_state_dict`, as is the convention.

Where an iteration itself has got to is no part of this: it is found again by drawing (`loaders`). What keeps a place
that nobody can read, such as an open iterator, is listed under `hidden`, for a warning.
"""

from __future__ import annotations

import copy
import functools
import pickle
import random
import types
import zlib
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
States = dict[str, Any]
"""What was taken, by the path of its holder: `dataset.rng`."""

_SAMPLERS = ("sampler", "batch_sampler")
_SCALARS = (int, float, complex, bool, str, bytes, type(None))
_MOST_OBJECTS = 10_000
_MOST_ITEMS = 64
"""A longer list is taken for samples, not for parts of the pipeline."""
_SMALL = 65_536
"""How many values of a sampler's are saved whether they have changed or not."""
_OPAQUE = (types.ModuleType, type, Tensor, np.ndarray, DataLoader, pl.Trainer, *_SCALARS)


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


class DataState:
    """Takes and puts back the state of one pipeline, looked for anew each time: generators are often made late."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._digests = {key: _digest(value) for key, value in _large(find(roots))}

    def take(self, *, stateful: bool = True) -> States:
        """The state now; `stateful` says whether what has a `state_dict` is asked for it."""
        found = find(self.roots)
        states: States = {path: random_state(generator) for path, generator in found.generators.items()}
        for path, sampler in found.samplers.items():
            states[path] = {
                name: copy.deepcopy(value)
                for name, value in _values(sampler, self.roots)
                if _size(value) <= _SMALL or _digest(value) != self._digests.get(f"{path}.{name}")
            }
        if stateful:
            states |= {path: copy.deepcopy(held.state_dict()) for path, held in found.stateful.items()}
        return states

    def put(self, states: States, *, stateful: bool = True) -> None:
        """Put back what `take` gave, here or in another process; a generator that is not there yet is made."""
        found = find(self.roots)
        for path, state in states.items():
            if isinstance(state, RandomState):
                if path in found.generators:
                    state.put_into(found.generators[path])
                else:
                    _make(path, state, found)
            elif path in found.samplers:
                _assign(found.samplers[path], state)
            elif path in found.stateful and stateful:
                found.stateful[path].load_state_dict(copy.deepcopy(state))


@dataclass(frozen=True)
class RandomState:
    """The state of one generator that is an object."""

    kind: str
    state: Any

    def put_into(self, generator: Any) -> None:
        """Let `generator`, of the same kind, go on from here."""
        if self.kind == "torch":
            generator.set_state(self.state.cpu())
        elif self.kind == "python":
            generator.setstate(self.state)
        elif self.kind == "numpy":
            getattr(generator, "bit_generator", generator).state = self.state
        else:
            generator.set_state(self.state)

    def new(self) -> Any:
        """A generator that goes on from here."""
        if self.kind == "numpy":
            generator: Any = np.random.Generator(getattr(np.random, self.state["bit_generator"])())
        else:
            generator = {"torch": torch.Generator, "python": random.Random}.get(self.kind, np.random.RandomState)()
        self.put_into(generator)
        return generator


def random_state(generator: Any) -> RandomState:
    """The state of `generator`."""
    if isinstance(generator, torch.Generator):
        return RandomState("torch", generator.get_state())
    if isinstance(generator, random.Random):
        return RandomState("python", generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return RandomState("numpy-legacy", generator.get_state(legacy=False))
    return RandomState("numpy", copy.deepcopy(getattr(generator, "bit_generator", generator).state))


def find(roots: Roots) -> Found:
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


def _make(path: str, state: RandomState, found: Found) -> None:
    """Make a generator that is not there yet, as where a data set makes its own when its first sample is asked for."""
    parent, _, name = path.rpartition(".")
    holder = found.objects.get(parent)
    if holder is not None and getattr(holder, name, None) is None and hasattr(holder, "__dict__"):
        setattr(holder, name, state.new())


def _values(sampler: Any, roots: Roots) -> list[tuple[str, Any]]:
    """The attributes of a sampler that are made of plain values, without the data set."""
    dataset = roots.get("dataset")
    return [(name, value) for name, value in vars(sampler).items() if value is not dataset and _size(value) >= 0]


def _size(value: Any) -> int:
    """How many plain values `value` is made of; -1 where it is made of others."""
    if isinstance(value, _SCALARS):
        return 1
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return -1 if value.dtype.hasobject else value.size
    if isinstance(value, range):
        return 1
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list | tuple | set | frozenset | deque):
        return -1
    if value and isinstance(value, list | tuple) and isinstance(value[0], int) and len(value) > _SMALL:
        return len(value)
    sizes = [_size(item) for item in value]
    return -1 if -1 in sizes else sum(sizes)


def _large(found: Found) -> list[tuple[str, Any]]:
    """The large attributes of samplers, which are saved only once they have changed."""
    return [
        (f"{path}.{name}", value)
        for path, sampler in found.samplers.items()
        for name, value in vars(sampler).items()
        if _size(value) > _SMALL
    ]


def _digest(value: Any) -> int:
    return zlib.crc32(pickle.dumps(value))


def _assign(sampler: Any, values: Mapping[str, Any]) -> None:
    """Give a sampler its values back, in place where others may hold the same container."""
    for name, saved in values.items():
        value, held = copy.deepcopy(saved), getattr(sampler, name, None)
        if isinstance(held, list) and isinstance(value, list):
            held[:] = value
        elif isinstance(held, Tensor) and isinstance(value, Tensor) and held.shape == value.shape:
            held.copy_(value)
        elif isinstance(held, np.ndarray) and isinstance(value, np.ndarray) and held.shape == value.shape:
            held[...] = value
        elif isinstance(held, dict | set) and type(held) is type(value):
            held.clear()
            held.update(value)
        else:
            vars(sampler)[name] = value
