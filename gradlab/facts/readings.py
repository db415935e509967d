"""The numbers of a model's parameters at a step that is looked at: norms, updates, silent rows, a few fixed places.

Belongs here: which numbers, and reducing them on the device. Does not: which steps are looked at (`collection`), or
what the numbers mean (`diagnose.rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.facts.numbers import Numbers
from gradlab.stats.norms import LONG, norm_into

PLACES = 64
"""At so many fixed places of a matrix its numbers themselves are read."""
MOST_SAMPLED = 16
"""Of so many matrices, spread over the model."""
_MOST_COLUMNS = 64
"""Rows are compared by so many of their numbers."""
ROWS = 64
"""Of so many rows of a matrix, evenly spread, it is known which of them have no gradient."""
_ROWS_UNTIL = 60
"""Equal rows are looked for up to this step."""
_NORMAL = 2.0**-14
"""The smallest number that float16 holds with all its digits."""


class ParameterReading:
    """One step's numbers of some parameters, gathered at its edges.

    Args:
        parameters: by name; those that are not dense real numbers of this process alone have none.
        step: its number.
        numbers: takes them to the host.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], step: int, numbers: Numbers) -> None:
        self.step = step
        self.sites = tuple(parameters)
        self._readable = [(place, p) for place, p in enumerate(parameters.values()) if is_readable(p)]
        matrices = [(place, p) for place, p in self._readable if p.dim() > 1 and p.requires_grad]
        stride = max(1, -(-len(matrices) // MOST_SAMPLED))
        self._sampled = matrices[::stride]
        self.half: frozenset[str] = frozenset()
        """Names of those that are used in float16, whatever they are kept in."""
        self._before: list[Tensor] = []
        self._numbers = numbers

    # At the edges of the step. Every method runs outside of modes and graphs of others.

    def backward_ended(self) -> None:
        """All gradients of a backward are accumulated, none is clipped yet; the last backward of a step counts."""
        self._gradients("weight_grad.norm")
        for place, gradient in _dense_gradients([(place, p) for place, p in self._readable if p.dim() > 1]):
            rows = gradient.flatten(1).abs().amax(1)
            self._add("weight_grad.zero_rows", place, 1 - torch.count_nonzero(rows) / max(len(rows), 1))
            self._numbers.add(("rows", "silent", place), rows[:: -(-len(rows) // ROWS) or 1][:ROWS] == 0)
            if gradient.dtype == torch.float16 or self.sites[place] in self.half:
                self._add("weight_grad.tiny", place, torch.count_nonzero(gradient.abs() < _NORMAL) / gradient.numel())
        self._sample("weight_grad", _dense_gradients(self._sampled))

    def before_update(self) -> None:
        """The gradients are as the optimizer is going to use them."""
        self._gradients("weight_grad.norm@clipped")

    def update_begins(self) -> None:
        """The first optimizer of the step is about to change weights."""
        if self._before:
            return
        values = [(place, p.detach()) for place, p in self._readable]
        self._norms("weight.norm", values)
        self._sample("weight", [(place, p.detach()) for place, p in self._sampled])
        if self.step <= _ROWS_UNTIL:
            for place, p in values:
                if p.dim() > 1 and len(p) > 1:
                    rows = p.flatten(1)[:, :_MOST_COLUMNS]
                    self._add("weight.equal_rows", place, (rows[1:] - rows[:-1]).abs().amax(1).median() / _rms(rows))
        self._before = [p.clone() for _, p in values]

    def after_update(self) -> None:
        """An optimizer has stepped; the last one of the step counts."""
        if len(self._before) != len(self._readable):
            return
        pairs = zip(self._readable, self._before, strict=True)
        changes = [(place, p.detach() - before) for (place, p), before in pairs if p.shape == before.shape]
        self._norms("update.norm", changes)
        sampled = {place for place, _ in self._sampled}
        self._sample("update", [(place, change) for place, change in changes if place in sampled])

    def step_ended(self) -> None:
        """Hold the weights before the update no longer."""
        self._before = []

    def numbers(self) -> dict[str, np.ndarray]:
        """By name, [sites]; NaN where a parameter has none."""
        found: dict[str, np.ndarray] = {}
        for key, values in self._numbers.values().items():
            kind, name, place = _parts_of(key)
            if kind == "parameter":
                found.setdefault(name, np.full(len(self.sites), np.nan))[place] = values
        return found

    @property
    def sampled_sites(self) -> tuple[str, ...]:
        """The matrices of which `samples` has numbers."""
        return tuple(self.sites[place] for place, _ in self._sampled)

    def samples(self) -> dict[str, np.ndarray]:
        """By name, [matrices, places]: their numbers at fixed places."""
        places = {place: row for row, (place, _) in enumerate(self._sampled)}
        found: dict[str, np.ndarray] = {}
        for key, values in self._numbers.values().items():
            kind, name, place = _parts_of(key)
            if kind == "sample":
                table = found.setdefault(name, np.full((len(self._sampled), PLACES), np.nan))
                table[places[place]] = values
        return found

    def rows(self) -> dict[str, np.ndarray]:
        """By name, [sites, ROWS]: which of some rows have no gradient; NaN where there are fewer."""
        found: dict[str, np.ndarray] = {}
        for key, values in self._numbers.values().items():
            kind, name, place = _parts_of(key)
            if kind == "rows":
                table = found.setdefault(name, np.full((len(self.sites), ROWS), np.nan))
                table[place, : len(values)] = values
        return found

    # What is computed.

    def _add(self, name: str, place: int, value: Tensor) -> None:
        self._numbers.add(("parameter", name, place), value)

    def _gradients(self, name: str) -> None:
        self._norms(name, _dense_gradients(self._readable))

    def _norms(self, name: str, tensors: Sequence[tuple[int, Tensor]]) -> None:
        short = [(place, x) for place, x in tensors if x.numel() <= LONG or not x.is_cpu]
        for place, x in tensors:
            if x.numel() > LONG and x.is_cpu:
                out = torch.empty((), dtype=torch.float32)
                norm_into(x, out)
                self._add(name, place, out)
        by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
        for place, x in short:
            by_device.setdefault(x.device, []).append((place, x))
        for ones in by_device.values():
            norms = torch._foreach_norm([x for _, x in ones])
            for (place, _), norm in zip(ones, norms, strict=True):
                self._add(name, place, norm)

    def _sample(self, name: str, tensors: Sequence[tuple[int, Tensor]]) -> None:
        for place, x in tensors:
            if x.is_contiguous():
                self._numbers.add(("sample", name, place), x.view(-1)[places_of(x.numel(), x.device)])


def is_readable(p: Tensor) -> bool:
    """Whether a parameter is a dense tensor of real numbers that this process has as a whole."""
    return (
        type(p) in (nn.Parameter, Tensor)
        and p.layout is torch.strided
        and p.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        and not p.is_meta
        and not p.is_nested
        and not getattr(p, "_fsdp_flattened", False)
        and p.numel() > 0
    )


def _dense_gradients(parameters: Sequence[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    return [(place, gradient) for place, p in parameters if _is_dense(gradient := p.grad)]


def _is_dense(gradient: Tensor | None) -> TypeGuard[Tensor]:
    return gradient is not None and type(gradient) is Tensor and gradient.layout is torch.strided


def _parts_of(key: Any) -> tuple[str, str, int]:
    """Of a key: parameter, rows or sample, the name, the place of the parameter; of others' no more than the kind."""
    kind, *rest = key
    return (kind, *rest) if kind in ("parameter", "rows", "sample") else (kind, "", 0)


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5


_known_places: dict[tuple[int, torch.device], Tensor] = {}


def places_of(numel: int, device: torch.device) -> Tensor:
    """[PLACES] int64: the same for each matrix of a size, by a generator of its own."""
    known = _known_places.get((numel, device))
    if known is None:
        picked = np.random.default_rng(numel).integers(0, numel, PLACES)
        known = _known_places[numel, device] = torch.from_numpy(picked).to(device)
    return known


Parameters = Callable[[], Mapping[str, nn.Parameter]]
"""Gives the parameters of the model as it is now, by name."""
