"""A plan: the rules that are due on a step, worked out into slots for each site, and the frame made from them.

Rules with the same `every` are due together, so a monitor has few plans and keeps each. A plan knows names and slots;
it never sees a tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from gradlab.frame import ABSENT, Schema, Series
from gradlab.sites.patterns import chooser
from gradlab.stats import (
    HIST_EDGES,
    UNITS,
    CosineWithPrevious,
    PartError,
    combine,
    derive,
    noise_scale,
    noise_scale_of_sums,
    parts_of,
    shift_bins,
    user_part,
)
from gradlab.taps.buffer.layout import Entry, slots_of
from gradlab.taps.buffer.rows import Row, Rows
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.rule import Tap

TENSOR_QUANTITIES = ("output", "output_grad")
PARAMETER_QUANTITIES = ("weight", "weight_grad", "update")
_LOCAL = ("output", "output_grad", "weight_grad@micro")
"""What each rank has by itself."""
# A gradient's statistics that grow with the loss scale, and so are divided by it.
_SCALED = frozenset({"norm", "rms", "mean", "std", "max_abs"})


class Target:
    """What is done with the tensor of one site: nothing is decided any more when the tensor comes by."""

    __slots__ = ("grad", "keep", "site", "value")

    def __init__(self, site: str, value: Entry | None, grad: Entry | None, keep: bool) -> None:
        self.site = site
        self.value = value
        self.grad = grad
        self.keep = keep


class Copy(Protocol):
    """The values of a step on their way to the host: a `HostCopy`, or those of all ranks (`ranks.RankCopy`)."""

    @property
    def numel(self) -> Sequence[Any]:
        """For each row, the number of elements of each entry."""

    def done(self) -> bool:
        """Whether `rows` need not wait."""

    def rows(self) -> list[np.ndarray]:
        """One float32 array a row, [slots]."""


class CombinedCopy(Copy, Protocol):
    """The values of all ranks."""

    world_size: int

    def micro(self) -> tuple[np.ndarray, np.ndarray]:
        """[parameters]: the squared norms of all backwards added up, and how many these are."""

    def local(self) -> np.ndarray:
        """[ranks, sites]: each rank's own norms of what is watched `per_rank`; negative where it has none."""


class Plan:
    """The rules due together, the slots of every site that they choose, and the way back to named series."""

    def __init__(self, rules: Sequence[Tap]) -> None:
        self.rules = tuple(rules)
        self.choosers = [chooser(rule.patterns) for rule in self.rules]
        self.rows = Rows()
        self.scale = self.rows.layout.add("", "loss_scale", ("sum",))
        self.targets: dict[str, Target | None] = {}
        self._lock = threading.Lock()  # several threads may meet a site at once
        self.without_tensors: dict[str, str] = {}
        """Sites of modules that returned something in which no tensor is seen, and of what type that was."""
        self.metrics: dict[tuple[str, str], list[Entry]] = {}
        self.memories: list[CosineWithPrevious] = []
        """What stats remember from one logged step to the next."""
        self.per_rank: list[Entry] = []
        """Those of whose norms every rank's own is wanted."""
        self._series: _SeriesMaker | None = None

    @cached_property
    def tensor_rules(self) -> list[Tap]:
        """The rules that want values or gradients of tensors that are not parameters."""
        return [rule for rule in self.rules if any(q in TENSOR_QUANTITIES for q in rule.quantities)]

    @cached_property
    def writes_in_passes(self) -> bool:
        """Whether a rule wants anything of a pass by itself, and not of the parameters at its end alone."""
        return bool(self.tensor_rules) or any("micro" in rule.stages for rule in self.rules)

    def rules_for(self, site: str, quantity: str) -> list[Tap]:
        """The rules that want this quantity at this site."""
        return [
            rule
            for rule, chosen in zip(self.rules, self.choosers, strict=True)
            if quantity in rule.quantities and chosen(site)
        ]

    def entry(self, site: str, quantity: str, stage: str = "final") -> Entry | None:
        """Slots for a quantity of a site at a stage, or None where no rule wants it."""
        rules = [rule for rule in self.rules_for(site, quantity) if stage in rule.stages]
        stats = tuple(dict.fromkeys(stat for rule in rules for stat in rule.statistics))
        if not stats:
            return None
        own = {name: user_part(function) for rule in rules for name, function in rule.own_stats.items()}
        if "cosine" in stats:
            self.memories.append(CosineWithPrevious())
            own["cosine"] = self.memories[-1]
        label = quantity if stage == "final" else f"{quantity}@{stage}"
        entry = self.rows.layout.add(site, label, parts_of(stats), own)
        for stat in stats:
            self.metrics.setdefault((label, stat), []).append(entry)
        if label in _LOCAL and any(rule.per_rank and "norm" in rule.statistics for rule in rules):
            self.per_rank.append(entry)
        self._series = None
        return entry

    def target(self, site: str) -> Target | None:
        """What to do with the tensor of a site, worked out on its first coming and remembered."""
        try:
            return self.targets[site]
        except KeyError:
            with self._lock:
                return self.targets[site] if site in self.targets else self._new_target(site)

    def _new_target(self, site: str) -> Target | None:
        value, grad = self.entry(site, "output"), self.entry(site, "output_grad")
        wanted = [rule for q in TENSOR_QUANTITIES for rule in self.rules_for(site, q)]
        keep = any(rule.keep for rule in wanted)
        self.targets[site] = Target(site, value, grad, keep) if wanted else None
        return self.targets[site]

    def forget_tensors(self, row: Row, *, only_gradients: bool = False) -> None:
        """Count the tensors' entries of a row as not written."""
        targets = [target for target in self.targets.values() if target is not None]
        entries = {target.grad for target in targets} | (set() if only_gradients else {t.value for t in targets})
        row.forget_entries({entry for entry in entries if entry is not None})

    def leave_alone(self, target: Target) -> None:
        """A target whose tensor made its tap fail is left alone from now on."""
        target.value = target.grad = None
        target.keep = False

    def leave_out(self, entry: Entry, error: Exception) -> None:
        """What made an error is computed no more: a part (`PartError`) with the stats that need it, or the entry."""
        if not isinstance(error, PartError):
            target = self.targets.get(entry.site)
            if target is not None and target.value is entry:
                target.value = None
            if target is not None and target.grad is entry:
                target.grad = None
            return
        for (_, stat), entries in self.metrics.items():
            if not set(error.parts).isdisjoint(parts_of((stat,))) and entry in entries:
                entries.remove(entry)
        functions = zip(entry.parts, entry.functions, strict=True)
        entry.functions = tuple(_nothing if part in error.parts else function for part, function in functions)
        self._series = None

    def series(self, copy: HostCopy | CombinedCopy, scaled: frozenset[str]) -> dict[str, Series]:
        """Named series from the rows of a step, with the loss scale taken out of the quantities that carry it."""
        if self._series is None:
            self._series = _SeriesMaker(self.metrics, self.per_rank)
        return self._series(copy, self.scale, scaled)


def _nothing(x: Any, out: Any) -> None:
    """A part that is not computed any more."""


class _Metric:
    """One metric's schema, and where its values are in a row."""

    def __init__(self, label: str, stat: str, entries: Sequence[Entry]) -> None:
        self.label = label
        self.stat = stat
        edges = HIST_EDGES if stat == "hist" else ()
        self.schema = Schema(_metric_name(label, stat), tuple(e.site for e in entries), UNITS.get(stat, ""), edges)
        self.entries = np.array([e.index for e in entries])
        self.slots = {part: slots_of(part, entries) for part in parts_of((stat,))}


class _SeriesMaker:
    """From the rows of a step to series: index arrays that are made once for a set of entries."""

    def __init__(self, metrics: dict[tuple[str, str], list[Entry]], per_rank: Sequence[Entry]) -> None:
        self.per_rank = per_rank
        self.metrics = [_Metric(label, stat, entries) for (label, stat), entries in metrics.items() if entries]
        self._numel: list[float] = []
        self._counts: list[tuple[np.ndarray, np.ndarray | None]] = []

    def __call__(self, copy: HostCopy | CombinedCopy, loss_scale: Entry, scaled: frozenset[str]) -> dict[str, Series]:
        rows = copy.rows()
        scale = float(rows[0][loss_scale.start]) if copy.numel[0][loss_scale.index] else 1.0
        values = self._of_one(rows[0], copy.numel[0]) if len(rows) == 1 else self._of_several(rows, copy.numel)
        result = {}
        for metric, (numbers, absent) in zip(self.metrics, values, strict=True):
            if scale != 1.0 and metric.label in scaled:
                if metric.stat in _SCALED:
                    numbers = numbers / scale
                elif metric.stat == "hist":
                    numbers = shift_bins(numbers, round(np.log2(scale)))
            if metric.stat == "hist" and metric.label == "output_grad" and not isinstance(copy, HostCopy):
                numbers = shift_bins(numbers, round(np.log2(copy.world_size)))
            if numbers.dtype != np.float32:
                with np.errstate(over="ignore"):
                    numbers = numbers.astype(np.float32)
            if absent is not None:
                numbers[absent] = ABSENT
            numbers.setflags(write=False)  # so that the series takes it as it is
            result[metric.schema.metric] = Series(metric.schema, numbers)
        if self.per_rank and not isinstance(copy, HostCopy):
            result |= self._of_ranks(copy.local(), scale, scaled)
        return result | self._noise_scale(copy, rows, result, scale)

    def _of_ranks(self, local: np.ndarray, scale: float, scaled: frozenset[str]) -> dict[str, Series]:
        """`<quantity>.norm@ranks`: the norm at each site on each rank, and of each rank's gradient as a whole."""
        result = {}
        for label in _LOCAL:
            places = [place for place, entry in enumerate(self.per_rank) if entry.quantity == label]
            if not places:
                continue
            norms = local[:, places] / (scale if label in scaled else 1.0)
            absent = local[:, places] < 0
            sites = [self.per_rank[place].site for place in places]
            if label.startswith("weight_grad"):
                with np.errstate(over="ignore"):
                    whole = np.sqrt(np.square(np.where(absent, 0.0, norms)).sum(1, keepdims=True))
                norms, sites = np.hstack([whole, norms]), ["all parameters", *sites]
                absent = np.hstack([absent.all(1, keepdims=True), absent])
            with np.errstate(over="ignore"):
                values = norms.T.ravel().astype(np.float32)
            values[absent.T.ravel()] = ABSENT
            names = tuple(f"{site}@rank{rank}" for site in sites for rank in range(len(norms)))
            schema = Schema(f"{label.partition('@')[0]}.norm@ranks", names)
            result[schema.metric] = Series(schema, values)
        return result

    def _noise_scale(
        self, copy: HostCopy | CombinedCopy, rows: Sequence[np.ndarray], series: dict[str, Series], scale: float
    ) -> dict[str, Series]:
        """The gradient noise scale, where the norms of single backwards and of their sum are both watched."""
        micro = next((m for m in self.metrics if (m.label, m.stat) == ("weight_grad@micro", "norm")), None)
        final = series.get("weight_grad.norm")
        if micro is None or final is None or final.schema.sites != micro.schema.sites:
            return {}
        total = final.array.astype(np.float64)
        if isinstance(copy, HostCopy):
            if len(rows) == 1:
                return {}
            counts = np.stack([_take(np.array(n, np.float64), micro.entries) for n in copy.numel])
            norms = np.stack([_take(row, micro.slots["norm"]) for row in rows]).astype(np.float64) / scale
            if copy.merged is None:
                scales = noise_scale(np.where(counts != 0, norms, np.nan), total)
            else:
                counts[1] = 0  # of all these one norm was left
                squares = np.where(counts != 0, np.square(norms), 0.0).sum(0)
                squares += _take(copy.merged.squares, micro.slots["norm"]) / scale**2
                scales = noise_scale_of_sums(
                    squares, (counts != 0).sum(0) + _take(copy.merged.times, micro.entries), total
                )
        else:
            squares, times = copy.micro()
            scales = noise_scale_of_sums(squares / scale**2, times, total * copy.world_size)
        schema = Schema("noise_scale", (*final.schema.sites, "all parameters"), "micro-batches")
        return {schema.metric: Series(schema, scales.astype(np.float32))}

    def _of_one(self, row: np.ndarray, numel: list[float]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The values of the usual step, which is one pass, and where there are none. Norms are taken as they are."""
        if numel != self._numel:
            self._numel = numel
            self._counts = []
            for metric in self.metrics:
                counts = _take(np.array(numel, np.float64), metric.entries)
                self._counts.append((counts.clip(0), counts == 0 if (counts == 0).any() else None))
        for metric, (counts, absent) in zip(self.metrics, self._counts, strict=True):
            parts = {part: _take(row, slots) for part, slots in metric.slots.items()}
            if metric.stat != "norm":
                parts = {part: piece.astype(np.float64) for part, piece in parts.items()}
            yield derive(metric.stat, parts, counts), absent

    def _of_several(
        self, rows: Sequence[np.ndarray], numel: Sequence[list[float]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The values of a step of several passes: those of the passes' concatenation."""
        for metric in self.metrics:
            counts = np.stack([_take(np.array(n, np.float64), metric.entries) for n in numel])
            pieces = {
                part: np.stack([_take(row, slots) for row in rows]).astype(np.float64)
                for part, slots in metric.slots.items()
            }
            absent, counts = (counts == 0).all(axis=0), counts.clip(0)
            if metric.label.endswith("@micro"):  # one backward: the last
                last = len(counts) - 1 - np.argmax(counts[::-1] > 0, axis=0)
                total = np.take_along_axis(counts, last[None], axis=0)[0]
                whole = {part: _rows_at(piece, last) for part, piece in pieces.items()}
            else:
                total = counts.sum(axis=0)
                whole = {part: combine(part, pieces, counts) for part in pieces}
            yield derive(metric.stat, whole, total), absent


def _rows_at(pieces: np.ndarray, which: np.ndarray) -> np.ndarray:
    """`pieces[which[site], site]` of [pieces, sites] or [pieces, sites, bins]."""
    return np.asarray(pieces[which, np.arange(pieces.shape[1])])


def _metric_name(label: str, stat: str) -> str:
    quantity, at, stage = label.partition("@")
    return f"{quantity}.{stat}{at}{stage}"


def _take(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`values[where]`, with 0 beyond the end of a row that is shorter than the layout is by now."""
    last = int(where.flat[-1])
    if last < len(values):
        return values[where]
    padded = np.zeros(last + 1, values.dtype)
    padded[: len(values)] = values
    return padded[where]
