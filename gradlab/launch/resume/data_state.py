"""The state of a data pipeline: what its samplers, data sets and functions remember from one batch to the next.

Four things decide which batches come, and only the first is the same object everywhere:

- the random numbers of the process (`random_state`),
- random generators of the pipeline's own: held as an attribute by the loader, a sampler, the data set or a function,
  in a closure, or as a global that the code of one of them names,
- what a sampler counts and shuffles: every attribute of it that is made of numbers, text and containers of these,
- what a data set says of itself by `state_dict` and takes back by `load_state_dict`, as is the convention.

All but the first are looked for by `pipeline_search`. Where an iteration itself has got to is no part of this: it is
found again by drawing (`loaders`).
"""

from __future__ import annotations

import copy
import pickle
import random
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.launch.resume.pipeline_search import SCALARS, Found, Roots, search_pipeline

States = dict[str, Any]
"""What was taken, by the path of its holder: `dataset.rng`."""

_SMALL = 65_536
"""How many values of a sampler's are saved whether they have changed or not."""


class DataState:
    """Takes and puts back the state of one pipeline, looked for anew each time: generators are often made late."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._digests = {key: _digest(value) for key, value in _large(search_pipeline(roots))}

    def take(self, *, stateful: bool = True) -> States:
        """The state now; `stateful` says whether what has a `state_dict` is asked for it."""
        found = search_pipeline(self.roots)
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
        found = search_pipeline(self.roots)
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
    """The state of one generator that is an object.

    Checkpoints hold it by the name of this module: it cannot move.
    """

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
    if isinstance(value, SCALARS):
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
