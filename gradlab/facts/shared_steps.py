"""Two optimizers with some of the same parameters: whether both step them, with which gradients, and which way.

Belongs here: comparing their updates at looks. Does not: what is right about it (`diagnose.rules.wiring`).
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.diagnose.context import SharedUpdates
from gradlab.facts.numbers import Numbers
from gradlab.facts.readings import is_readable, places_of
from gradlab.optimizers import parameters_of

_MOST = 16
"""So many of the parameters that two optimizers share are compared."""


@dataclass
class _Pair:
    """Two optimizers, and the parameters that both have."""

    shared: list[weakref.ref[Tensor]]
    ids: frozenset[int]
    gradients: dict[int, list[tuple[weakref.ref[Tensor], int]]] = field(default_factory=dict)
    """Those that an optimizer used, with their versions, by its id."""
    before: dict[int, list[Tensor]] = field(default_factory=dict)
    updates: dict[int, Tensor] = field(default_factory=dict)
    num_looks: int = 0
    num_same_gradients: int = 0
    cosines: list[float] = field(default_factory=list)
    is_same: bool = False

    def values(self) -> list[Tensor]:
        """Some numbers of the shared parameters, as they are now."""
        alive = [p.detach() for ref in self.shared if (p := ref()) is not None]
        return [p.reshape(-1)[places_of(p.numel(), p.device)] for p in alive]

    def gradients_now(self) -> list[tuple[weakref.ref[Tensor], int]]:
        """Of the shared parameters, with their versions."""
        alive = [p for ref in self.shared if (p := ref()) is not None]
        return [(weakref.ref(g), g._version) for p in alive if p.is_leaf and (g := p.grad) is not None]

    def are_current(self, optimizer: int) -> bool:
        """Whether the gradients that an optimizer has used are still there, and nothing was written to them."""
        used, now = self.gradients.get(optimizer, []), self.gradients_now()
        return bool(used) and [(ref(), version) for ref, version in used] == [(ref(), version) for ref, version in now]


class SharedSteps:
    """Compares what optimizers do to parameters that they share."""

    def __init__(self) -> None:
        self._optimizers: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self._wanted: set[int] = set()
        """Ids of optimizers whose next step is looked at."""

    def before_update(self, optimizer: Any, *, is_look: bool) -> None:
        """An optimizer is about to step. Cost: 1 microsecond where it shares nothing."""
        self._note(optimizer)
        if is_look:
            self._wanted |= {key for pair in self._pairs for key in pair}
        if id(optimizer) not in self._wanted:
            return
        for (first, second), pair in self._pairs.items():
            if id(optimizer) in (first, second):
                other = second if id(optimizer) == first else first
                pair.is_same = pair.are_current(other)
                pair.before[id(optimizer)] = pair.values()

    def after_update(self, optimizer: Any, numbers: Numbers) -> None:
        """It has stepped."""
        if id(optimizer) not in self._wanted:
            return
        self._wanted.discard(id(optimizer))
        for key, pair in self._pairs.items():
            before = pair.before.pop(id(optimizer), None)
            now = pair.values() if before is not None else []
            if before is None or len(before) != len(now) or not now:
                continue
            device = now[0].device
            changes = [(b - a).to(device, torch.float32) for a, b in zip(before, now, strict=True)]
            pair.updates[id(optimizer)] = torch.cat(changes)
            pair.gradients[id(optimizer)] = pair.gradients_now()
            if len(pair.updates) == 2:
                one, other = pair.updates.values()
                name = "shared", *key, pair.num_looks
                numbers.add(name, torch.stack([one @ other, one @ one, other @ other]))
                pair.num_looks += 1
                pair.num_same_gradients += pair.is_same
                pair.updates, pair.gradients = {}, {}

    def take(self, values: Mapping[Hashable, np.ndarray]) -> None:
        """Numbers of a look have arrived."""
        for name, products in values.items():
            if isinstance(name, tuple) and name[0] == "shared":
                pair = self._pairs.get(name[1:3])
                product, one, other = products
                if pair is not None and one > 0 and other > 0:
                    pair.cosines.append(float(product / (one * other) ** 0.5))

    def facts(self, optimizers: Sequence[Any], names: Mapping[int, str]) -> tuple[SharedUpdates, ...]:
        """Of those that are among some optimizers, the places of which are told."""
        places = {id(one): place for place, one in enumerate(optimizers)}
        return tuple(
            SharedUpdates(
                optimizers=(places[first], places[second]),
                parameters=tuple(name for key, name in names.items() if key in pair.ids),
                num_looks=pair.num_looks,
                num_same_gradients=pair.num_same_gradients,
                cosine=sum(pair.cosines) / len(pair.cosines) if pair.cosines else None,
            )
            for (first, second), pair in self._pairs.items()
            if first in places and second in places
        )

    def _note(self, optimizer: Any) -> None:
        """Look for parameters that it shares with others, where it is new or has other parameters by now."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._optimizers.get(id(optimizer))
        if known is not None and known[0]() is optimizer and known[1] == size:
            return
        self._optimizers[id(optimizer)] = weakref.ref(optimizer), size
        self._pairs = {pair: one for pair, one in self._pairs.items() if id(optimizer) not in pair}
        mine = {id(p): p for p in parameters_of(optimizer)}
        for key, (ref, _) in list(self._optimizers.items()):
            other = ref()
            if other is None:
                del self._optimizers[key]
            elif other is not optimizer and not _share_groups(optimizer, other):
                shared = [p for p in parameters_of(other) if id(p) in mine]
                some = [weakref.ref(p) for p in shared if is_readable(p)]
                if some:
                    ids = frozenset(map(id, shared))
                    self._pairs[key, id(optimizer)] = _Pair(some[:: -(-len(some) // _MOST)], ids)


def _share_groups(one: Any, other: Any) -> bool:
    """Whether they hold one and the same group, as a wrapper and what it wraps do."""
    mine = set(map(id, one.param_groups))
    return any(id(group) in mine for group in other.param_groups)
