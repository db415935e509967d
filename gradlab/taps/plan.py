"""A plan: the rules that are due on a step, worked out into slots for each site, and the frame made from them.

Rules with the same `every` are due together, so a monitor has few plans and keeps each. A plan knows names and slots;
it never sees a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from gradlab.frame import ABSENT, Schema, Series
from gradlab.stats import UNITS, combine, derive, parts_of
from gradlab.taps.rule import Tap
from gradlab.taps.sites import chooser
from gradlab.taps.slots import Entry, HostCopy, Rows

TENSOR_QUANTITIES = ("output", "output_grad")
PARAMETER_QUANTITIES = ("weight", "weight_grad", "update")
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


class Plan:
    """The rules due together, the slots of every site that they choose, and the way back to named series."""

    def __init__(self, rules: Sequence[Tap]) -> None:
        self.rules = tuple(rules)
        self.choosers = [chooser(rule.patterns) for rule in self.rules]
        self.rows = Rows()
        self.scale = self.rows.layout.add("", "loss_scale", ("sum",))
        self.targets: dict[str, Target | None] = {}
        self.metrics: dict[tuple[str, str], list[Entry]] = {}
        self._series: _SeriesMaker | None = None

    @cached_property
    def tensor_rules(self) -> list[Tap]:
        """The rules that want values or gradients of tensors that are not parameters."""
        return [rule for rule in self.rules if any(q in TENSOR_QUANTITIES for q in rule.quantities)]

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
        label = quantity if stage == "final" else f"{quantity}@{stage}"
        entry = self.rows.layout.add(site, label, parts_of(stats))
        for stat in stats:
            self.metrics.setdefault((label, stat), []).append(entry)
        self._series = None
        return entry

    def target(self, site: str) -> Target | None:
        """What to do with the tensor of a site, worked out on its first coming and remembered."""
        try:
            return self.targets[site]
        except KeyError:
            value, grad = self.entry(site, "output"), self.entry(site, "output_grad")
            wanted = [rule for q in TENSOR_QUANTITIES for rule in self.rules_for(site, q)]
            keep = any(rule.keep for rule in wanted)
            self.targets[site] = Target(site, value, grad, keep) if wanted else None
            return self.targets[site]

    def leave_alone(self, target: Target) -> None:
        """A target whose tensor made its tap fail is left alone from now on."""
        target.value = target.grad = None
        target.keep = False

    def series(self, copy: HostCopy, scaled: frozenset[str]) -> dict[str, Series]:
        """Named series from the rows of a step, with the loss scale taken out of the quantities that carry it."""
        if self._series is None:
            self._series = _SeriesMaker(self.metrics)
        return self._series(copy, self.scale, scaled)


class _SeriesMaker:
    """Index arrays from slots to series, made once for a set of entries."""

    def __init__(self, metrics: dict[tuple[str, str], list[Entry]]) -> None:
        self.metrics = [
            (
                label,
                stat,
                Schema(_metric_name(label, stat), tuple(e.site for e in entries), UNITS.get(stat, "")),
                entries,
            )
            for (label, stat), entries in metrics.items()
        ]
        self.entries = {key: np.array([e.index for e in entries]) for key, entries in metrics.items()}
        self.slots = {
            (label, stat, part): np.array([e.start + e.parts.index(part) for e in entries])
            for (label, stat), entries in metrics.items()
            for part in parts_of((stat,))
        }

    def __call__(self, copy: HostCopy, loss_scale: Entry, scaled: frozenset[str]) -> dict[str, Series]:
        rows, numel = copy.rows(), [np.array(n, np.float64) for n in copy.numel]
        scale = rows[0][loss_scale.start] if numel[0][loss_scale.index] else 1.0
        result = {}
        for label, stat, schema, _ in self.metrics:
            counts = [_take(n, self.entries[label, stat]) for n in numel]
            total = np.sum(counts, axis=0) if len(counts) > 1 else counts[0]
            parts = {part: [_take(row, self.slots[label, stat, part]) for row in rows] for part in parts_of((stat,))}
            used = [index for index, count in enumerate(counts) if count.any()]
            if len(used) <= 1:
                whole = {part: pieces[used[0] if used else 0] for part, pieces in parts.items()}
            else:
                stacked = {part: np.stack(pieces) for part, pieces in parts.items()}
                whole = {part: combine(part, stacked, np.stack(counts)) for part in parts}
            values = derive(stat, whole, total)
            if scale != 1.0 and stat in _SCALED and label in scaled:
                values = values / scale
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float32)
            narrow[total == 0] = ABSENT
            result[schema.metric] = Series(schema, narrow)
        return result


def _metric_name(label: str, stat: str) -> str:
    quantity, at, stage = label.partition("@")
    return f"{quantity}.{stat}{at}{stage}"


def _take(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`values[where]`, with 0 beyond the end of a row that is shorter than the layout is by now."""
    if where[-1] < len(values):
        return values[where]
    padded = np.zeros(where[-1] + 1)
    padded[: len(values)] = values
    return padded[where]
