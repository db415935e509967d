"""Ranks: what each rank of a distributed run saw, made into the numbers of the whole by one collective a logged step.

A tensor of the forward is a piece of the global batch, and its gradient is of the local loss, of which the global one
is the mean. A parameter that every rank has as a whole (DDP) is the same everywhere; of one that is sharded (DTensor:
FSDP2, HSDP, tensor parallelism) each rank holds a piece, some of them more than once. With these weights squares, sums
and counts add up over ranks in float64; smallest and largest values, where asked for, need a second collective.

Every rank has to watch the same model with the same rules. Which slots are combined is agreed upon in the first logged
step, and again one logged step after a rank has met a site that is new to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradlab.errors import TapError
from gradlab.stats import PARTS
from gradlab.taps.plan import PARAMETER_QUANTITIES, Plan
from gradlab.taps.slots import Entry, HostCopy, Row, Transfer

_KINDS = {"norm": 0, "spread": 1, "min": 3, "max": 4}
_LINEAR = frozenset({"norm", "spread", "min", "max", "sum"})
"""The parts that grow with what the tensor is multiplied by."""
_SQUARE, _SPREAD, _SUM, _MIN, _MAX, _OWN = range(6)
Key = tuple[str, str]
"""Quantity and site of an entry."""


class _Agreed:
    """The slots that are combined, in the order that all ranks have agreed upon."""

    def __init__(self, keys: Sequence[Key], plan: Plan, weights: dict[str, float], device: torch.device) -> None:
        found = {(entry.quantity, entry.site): entry for entry in plan.rows.layout.entries}
        self.entries = [found[key] for key in keys]
        self.known = len(plan.rows.layout.entries)
        size = dist.get_world_size()
        slots: list[int] = []
        kinds: list[int] = []
        owners: list[int] = []
        partners: list[int] = []
        scales: list[float] = []
        for number, entry in enumerate(self.entries):
            places: dict[str, int] = {}
            slot, scale = entry.start, 1.0 / size if entry.quantity == "output_grad" else 1.0
            for part, width in zip(entry.parts, entry.widths, strict=True):
                places[part] = len(slots)
                kinds += [_KINDS.get(part, _SUM if part in PARTS else _OWN)] * width
                owners += [number] * width
                partners += [places.get("sum", 0)] * width
                scales += [scale if part in _LINEAR else 1.0] * width
                slots += range(slot, slot + width)
                slot += width

        def on_device(values: Any) -> Tensor:
            tensor = torch.tensor(values)
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        self.slots, self.kinds, self.owners = on_device(slots), on_device(kinds), on_device(owners)
        self.partners = on_device(partners)
        weight = [_weight(entry, weights, size) for entry in self.entries]
        self.weights = on_device(np.array(weight, np.float64))
        self.scales = on_device(np.array(scales, np.float64))
        self.has_extremes = any(kind in (_MIN, _MAX) for kind in kinds)
        self.micro = [n for n, e in enumerate(self.entries) if e.quantity == "weight_grad@micro" and e.is_norm]
        self.micro_slots = [owners.index(number) for number in self.micro]
        self.is_last_only = on_device([e.quantity.endswith("@micro") for e in self.entries])


def _weight(entry: Entry, weights: dict[str, float], size: int) -> float:
    """What a rank's piece counts for: 1 where pieces make up the whole, less where several ranks have the same."""
    quantity = entry.quantity.partition("@")[0]
    if quantity in PARAMETER_QUANTITIES:
        return weights.get(entry.site, 1.0 / size)
    return 1.0 / size if quantity == "loss_scale" else 1.0


class Ranks:
    """Combines the rows of one plan over all ranks of the default process group."""

    def __init__(self, plan: Plan, parameters: Callable[[], Mapping[str, nn.Parameter]]) -> None:
        """Combine the rows of a plan; `parameters` tells which there are, sharded or whole."""
        self.plan = plan
        self.parameters = parameters
        self._agreed: _Agreed | None = None
        self._last: RankCopy | None = None

    def copy(self, rows: Sequence[Row]) -> RankCopy:
        """The combined values of a step on their way to the host. All ranks call this on the same steps.

        Raises:
            TapError: the ranks watch different models.
        """
        for row in rows:
            row.flush()
        if self._agreed is None or (self._last is not None and self._last.has_grown()):
            self._agreed = self._agree(rows[0].device)
        self._last = _combine(self._agreed, self.plan, rows)
        return self._last

    def _agree(self, device: torch.device) -> _Agreed:
        """Exchange the names of all entries; those of other ranks get slots here too."""
        mine = [(entry.quantity, entry.site) for entry in self.plan.rows.layout.entries]
        everybody: list[list[Key]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everybody, mine)
        union = list(dict.fromkeys(key for keys in everybody for key in keys))
        for quantity, site in union:
            if (quantity, site) not in mine and quantity in ("output", "output_grad"):
                self.plan.target(site)
        have = {(entry.quantity, entry.site) for entry in self.plan.rows.layout.entries}
        for rank, keys in enumerate(everybody):
            for key in keys:
                if key not in have:
                    raise TapError(
                        f"rank {dist.get_rank()} has no {key[0]} of {key[1]!r}, which rank {rank} watches: all ranks "
                        f"have to watch the same model with the same taps."
                    )
        found = self.parameters().items()
        weights = {name: weight for name, p in found if (weight := replica_weight(p)) is not None}
        return _Agreed(union, self.plan, weights, device)


def _combine(agreed: _Agreed, plan: Plan, rows: Sequence[Row]) -> RankCopy:
    for row in rows:
        row.grow()
    device = rows[0].device
    values, counts = _stacked(agreed, rows, device)
    kinds, owners = agreed.kinds, agreed.owners
    is_there = counts[:, owners] > 0
    sums, extremes = _contributions(agreed, values, counts, is_there)
    micro = counts[:, agreed.micro] > 0
    # The squared norms of this rank's backwards, added up, for the gradient noise scale.
    squares = torch.where(micro, values[:, agreed.micro_slots].square(), 0.0).sum(0)
    grown = counts.new_full((1,), float(len(plan.rows.layout.entries) > agreed.known))
    total = (counts * agreed.weights).sum(0)
    packed = torch.cat([sums, total, squares, micro.sum(0).double(), grown])
    dist.all_reduce(packed)
    if agreed.has_extremes:
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
    sizes = [len(sums), len(total), len(squares), len(squares), 1]
    sums, total, squares, times, grown = packed.split(sizes)
    result = torch.where(kinds == _SQUARE, sums.sqrt(), sums)
    mean_square = sums[agreed.partners].square() / total[owners].clamp(min=1.0)
    result = torch.where(kinds == _SPREAD, (sums - mean_square).clamp(min=0.0).sqrt(), result)
    result = torch.where(kinds == _MIN, -extremes, torch.where(kinds == _MAX, extremes, result))
    flat = torch.zeros(plan.rows.layout.width, dtype=torch.float64, device=device)
    flat[agreed.slots] = result * agreed.scales
    return RankCopy(agreed, plan, rows, torch.cat([flat, total, squares, times, grown]))


def _stacked(agreed: _Agreed, rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """[rows, slots] values and [rows, entries] counts, float64; of what is known of one backward, the last row's."""
    values = torch.stack([torch.cat(row.chunks) if len(row.chunks) > 1 else row.chunks[0] for row in rows]).double()
    numel = torch.tensor([[float(row.numel[entry.index]) for entry in agreed.entries] for row in rows])
    counts = numel.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numel
    return values[:, agreed.slots], counts.double()


def _contributions(agreed: _Agreed, values: Tensor, counts: Tensor, is_there: Tensor) -> tuple[Tensor, Tensor]:
    """[slots] float64 to be added up over ranks, and [slots] of which the largest is wanted."""
    kinds, owners = agreed.kinds, agreed.owners
    squares = values.square()
    moments = squares + values[:, agreed.partners].square() / counts[:, owners].clamp(min=1.0)
    parts = torch.where(kinds == _SQUARE, squares, torch.where(kinds == _SPREAD, moments, values))
    # Of one backward (`micro`), and of a user's own stat, the last row speaks.
    later = is_there.flip(0).cumsum(0).flip(0) - is_there.long()
    only_last = agreed.is_last_only[owners] | (kinds == _OWN)
    counted = is_there & ~(only_last & (later > 0))
    sums = torch.where(counted, parts, 0.0).sum(0) * agreed.weights[owners]
    own = counted.any(0).double() / dist.get_world_size()
    sums = torch.where(kinds == _OWN, torch.where(counted, values, 0.0).sum(0) * own, sums)
    sums = torch.where((kinds == _MIN) | (kinds == _MAX), 0.0, sums)
    signed = torch.where(kinds == _MIN, -values, values)
    return sums, torch.where(is_there, signed, -torch.inf).amax(0)


class RankCopy:
    """Combined values on their way to the host: one row, as a `HostCopy` of one pass of a single process gives it."""

    def __init__(self, agreed: _Agreed, plan: Plan, rows: Sequence[Row], packed: Tensor) -> None:
        self._agreed, self._plan = agreed, plan
        self._width, self._num_entries = plan.rows.layout.width, len(plan.rows.layout.entries)
        self._trial = HostCopy(rows) if any(row.trials for row in rows) else None
        self._transfer = Transfer([packed])
        self.world_size = dist.get_world_size()

    def done(self) -> bool:
        """Whether the values can be read without waiting."""
        return self._transfer.done() and (self._trial is None or self._trial.done())

    def has_grown(self) -> bool:
        """Whether a rank had met a site by then that was not agreed upon."""
        return bool(self._transfer.values()[-1] > 0)

    def rows(self) -> list[np.ndarray]:
        """[slots] float32 of the whole run."""
        if self._trial is not None:
            self._trial.rows()
            self._trial = None
        with np.errstate(over="ignore"):
            return [self._transfer.values()[: self._width].astype(np.float32)]

    @property
    def numel(self) -> list[list[float]]:
        """How many elements each entry was computed from, on all ranks together."""
        counts = [0.0] * self._num_entries
        reduced = self._transfer.values()[self._width : self._width + len(self._agreed.entries)]
        for entry, count in zip(self._agreed.entries, reduced.tolist(), strict=True):
            counts[entry.index] = round(count)
        return [counts]

    def micro(self) -> tuple[np.ndarray, np.ndarray]:
        """[parameters] float64: the squared norms of all backwards of all ranks, added up, and how many these are."""
        tail = self._transfer.values()[self._width + len(self._agreed.entries) : -1]
        return tail[: len(tail) // 2], tail[len(tail) // 2 :]


def replica_weight(parameter: Any) -> float | None:
    """What a rank's piece of a sharded parameter counts for; None where each rank has all of it."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return None
    sizes = [size for size, p in zip(parameter.device_mesh.shape, placements, strict=True) if p.is_replicate()]
    outside = dist.get_world_size() / parameter.device_mesh.size()
    return 1.0 / (float(np.prod(sizes)) * outside)
