"""How far a training has come: its steps by its weights, its losses by their start, its optimizers' settings.

Belongs here: what several rules ask. Does not: what is wrong with it (`rules`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gradlab.diagnose.context import Abstain, Context, OptimizerFacts

SEARCHES = ("LBFGS",)
"""Their steps are as long as a line search found good."""
LONG_FIRST_STEP = ("RMSprop", "Adagrad")
"""Their first steps are ten times as long as later ones, whatever the learning rate."""
GROWN = 6.0
"""So many times as large as at first have the weights become. Measured: 2.5 to 310; healthy: at most 3.4."""
REBOUND = 2.0
"""The loss by its least. Measured: 2.8 to 6.8 (or weights 11 to 23 times as large); healthy: at most 2.1."""


class Steps:
    """How far the steps move the matrices that are trained."""

    def __init__(self, context: Context) -> None:
        readings = context.readings
        self.places = context.matrices
        if not len(self.places):
            raise Abstain("no matrix is trained")
        self.steps = readings.steps
        self.sites = tuple(readings.sites[place] for place in self.places)
        rows = {one.name: one.shape[0] for one in context.parameters if one.shape}
        # Weights that begin at zero have no size of their own: theirs is that of torch's default init at least, by
        # which a matrix has a norm of sqrt(rows / 3).
        usual = np.array([(rows[site] / 3) ** 0.5 for site in self.sites])
        self.norms = np.fmax(readings["weight.norm"][:, self.places], usual)
        updates = readings["update.norm"][:, self.places]
        with np.errstate(all="ignore"):
            self.ratios = np.where(updates > 0, updates / self.norms, np.nan)
        """[looks, matrices] the norm of the step by that of the weights; NaN where nothing was moved."""

    def medians(self, columns: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """[looks] the median over matrices that were moved; NaN where none was."""
        return medians_of(self.ratios[:, columns])

    def growth(self, columns: Sequence[int] | slice = slice(None)) -> float:
        """How many times larger the weights are now than at the first look, in the median."""
        known = np.flatnonzero(np.isfinite(self.norms[:, columns]).any(1))
        if not len(known):
            return 1.0
        first, last = self.norms[known[0], columns], self.norms[known[-1], columns]
        with np.errstate(all="ignore"):
            return median(last / first)


def medians_of(table: np.ndarray) -> np.ndarray:
    """The median of each row over what is finite; NaN where nothing is."""
    return np.array([median(row) for row in table])


def median(values: np.ndarray) -> float:
    """The median of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def loss_peak(context: Context) -> float:
    """The largest loss since the first, by the first; infinite where it is not finite any more; 1 if not known."""
    return max((peak_of(one.values) for one in context.losses if len(one.values) > 1), default=1.0)


def first_loss(values: np.ndarray) -> float:
    """The first value of a loss, or the usual one of the first three where that is less."""
    return min(float(values[0]), float(np.median(values[:3]))) if len(values) > 6 else float(values[0])


def peak_of(values: np.ndarray) -> float:
    """The same of one loss; 1 where it has been below zero, as that of a critic, whose first value is no measure."""
    if (values < 0).any():
        return 1.0
    if not np.isfinite(values).all():
        return float("inf") if np.isfinite(values[0]) else 1.0
    first = first_loss(values)
    return float(values[1:].max() / first) if first > 0 else 1.0


def loss_left(context: Context) -> float | None:
    """The share of the first loss that is left; the least where there are several; None: losses are not positive."""
    shares = []
    for one in context.losses:
        values = one.values[np.isfinite(one.values)]
        if len(values) >= 10 and (first := float(values[: max(3, len(values) // 30)].mean())) > 0:
            shares.append(float(np.median(values[-max(5, len(values) // 10) :]) / first))
    return min(shares, default=None)


def counted_optimizers(context: Context) -> list[OptimizerFacts]:
    return [one for one in context.optimizers if one.is_counted]


def groups_of(
    context: Context, sites: Sequence[str]
) -> Iterator[tuple[OptimizerFacts, Mapping[str, float], list[int]]]:
    """Each group of a counted optimizer with the places of its parameters among the sites, where it has any there."""
    for one in counted_optimizers(context):
        for settings, names in zip(one.groups, one.parameters, strict=True):
            mine = set(names)
            if columns := [place for place, site in enumerate(sites) if site in mine]:
                yield one, settings, columns


def percent(share: float) -> str:
    """A share as people read it: `85 %`, `0.0012 %`."""
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.2g} %"


def of_norm(ratio: float) -> str:
    """A ratio before what it is of: `85 % of`, `14 times`."""
    return f"{percent(ratio)} of" if ratio < 9.95 else f"{ratio:.0f} times"


def decay_of_step(one: OptimizerFacts, settings: Mapping[str, float]) -> float:
    """The share that decay takes of a weight in a step; 0 where decay is added to what Adam normalizes."""
    if one.is_adaptive and not one.has_decoupled_decay:
        return 0.0
    momentum = 0.0 if one.is_adaptive else settings.get("momentum", 0.0)
    return settings.get("lr", 0.0) * settings.get("weight_decay", 0.0) / max(1 - momentum, 1e-3)


def loss_rebound(context: Context) -> float:
    """The loss lately by the least that it has been, smoothed; 1 where it is not positive."""
    worst = 1.0
    for one in context.losses:
        values = one.values
        if len(values) < 30 or not np.isfinite(values).all() or values.min() <= 0:
            continue
        width = max(5, len(values) // 20)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        worst = max(worst, float(smooth[-1] / smooth.min()))
    return worst
