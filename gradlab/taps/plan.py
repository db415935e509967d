"""A plan: the rules that are due on a step, worked out into slots for each site.

Rules with the same `every` are due together, so a monitor has few plans and keeps each. A plan knows names and slots;
it never sees a tensor. How slots become named series is in `series`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from gradlab.frame import Series
from gradlab.sites.patterns import chooser
from gradlab.stats.cosine import CosineWithPrevious
from gradlab.stats.derive import parts_of
from gradlab.stats.parts import PartError, user_part
from gradlab.taps.buffer.layout import Entry, Layout
from gradlab.taps.buffer.rows import Row, RowPool
from gradlab.taps.rule import Tap
from gradlab.taps.series import PER_RANK_LABELS, Copy, SeriesMaker

TENSOR_QUANTITIES = ("output", "output_grad")
PARAMETER_QUANTITIES = ("weight", "weight_grad", "update")


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
        self._choosers = [chooser(rule.patterns) for rule in self.rules]
        self.layout = Layout()
        self.row_pool = RowPool(self.layout)
        self.loss_scale = self.layout.add("", "loss_scale", ("sum",))
        self.targets: dict[str, Target | None] = {}
        """By site, as far as sites have been met; None where no rule wants anything there."""
        self._lock = threading.Lock()  # several threads may meet a site at once
        self.without_tensors: dict[str, str] = {}
        """Sites of modules that returned something in which no tensor is seen, and of what type that was."""
        self.metrics: dict[tuple[str, str], list[Entry]] = {}
        """The entries of each pair of label and stat."""
        self.memories: list[CosineWithPrevious] = []
        """The parts that remember a tensor from one logged step to the next."""
        self.per_rank: list[Entry] = []
        """The entries of whose norms every rank's own is wanted."""
        self._series: SeriesMaker | None = None

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
            for rule, chosen in zip(self.rules, self._choosers, strict=True)
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
        entry = self.layout.add(site, label, parts_of(stats), own)
        for stat in stats:
            self.metrics.setdefault((label, stat), []).append(entry)
        if label in PER_RANK_LABELS and any(rule.per_rank and "norm" in rule.statistics for rule in rules):
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

    def series(self, copy: Copy, scaled: frozenset[str]) -> dict[str, Series]:
        """Named series from the values of a step, with the loss scale taken out of the quantities that carry it."""
        if self._series is None:
            self._series = SeriesMaker(self.metrics, self.per_rank, self.loss_scale)
        return self._series.make(copy, scaled)


def _nothing(x: Any, out: Any) -> None:
    """A part that is not computed any more."""
