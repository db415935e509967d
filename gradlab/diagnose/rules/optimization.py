"""The size of a step: learning rates, weight decay, clipping, momentum, Adam's eps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gradlab.diagnose.context import Abstain, Context, OptimizerFacts, is_embedding
from gradlab.diagnose.registry import Evidence, rule

_SEARCHES = ("LBFGS",)
"""Their steps are as long as a line search found good."""
_LONG_FIRST_STEP = ("RMSprop", "Adagrad")
"""Their first steps are ten times as long as later ones, whatever the learning rate."""


# What several rules ask.


class _Steps:
    """How far the steps move the matrices that are trained."""

    def __init__(self, context: Context) -> None:
        readings = context.readings
        self.places = context.matrices
        if not len(self.places):
            raise Abstain("no matrix is trained")
        self.steps = readings.steps
        self.sites = tuple(readings.sites[place] for place in self.places)
        rows = {one.name: one.shape[0] for one in context.parameters}
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
        return _medians(self.ratios[:, columns])

    def growth(self, columns: Sequence[int] | slice = slice(None)) -> float:
        """How many times larger the weights are now than at the first look, in the median."""
        known = np.flatnonzero(np.isfinite(self.norms[:, columns]).any(1))
        if not len(known):
            return 1.0
        first, last = self.norms[known[0], columns], self.norms[known[-1], columns]
        with np.errstate(all="ignore"):
            return _median(last / first)


def _medians(table: np.ndarray) -> np.ndarray:
    """The median of each row over what is finite; NaN where nothing is."""
    return np.array([_median(row) for row in table])


def _median(values: np.ndarray) -> float:
    """The median of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _peak(context: Context) -> float:
    """The largest loss since the first, by the first; infinite where it is not finite any more; 1 if not known."""
    return max((_peak_of(one.values) for one in context.losses if len(one.values) > 1), default=1.0)


def _first_of(values: np.ndarray) -> float:
    """The first value of a loss, or the usual one of the first three where that is less."""
    return min(float(values[0]), float(np.median(values[:3]))) if len(values) > 6 else float(values[0])


def _peak_of(values: np.ndarray) -> float:
    if not np.isfinite(values).all():
        return float("inf") if np.isfinite(values[0]) else 1.0
    first = _first_of(values)
    return float(values[1:].max() / first) if first > 0 else 1.0


def _left(context: Context) -> float | None:
    """The share of the first loss that is left; the least where there are several; None: losses are not positive."""
    shares = []
    for one in context.losses:
        values = one.values[np.isfinite(one.values)]
        if len(values) >= 10 and (first := float(values[: max(3, len(values) // 30)].mean())) > 0:
            shares.append(float(np.median(values[-max(5, len(values) // 10) :]) / first))
    return min(shares, default=None)


def _counted(context: Context) -> list[OptimizerFacts]:
    return [one for one in context.optimizers if one.is_counted]


def _groups(context: Context, sites: Sequence[str]) -> Iterator[tuple[OptimizerFacts, Mapping[str, float], list[int]]]:
    """Each group of a counted optimizer with the places of its parameters among the sites, where it has any there."""
    for one in _counted(context):
        for settings, names in zip(one.groups, one.parameters, strict=True):
            mine = set(names)
            if columns := [place for place, site in enumerate(sites) if site in mine]:
                yield one, settings, columns


def _plain(share: float) -> str:
    """A share as people read it: `85 %`, `0.0012 %`."""
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.2g} %"


def _of(ratio: float) -> str:
    """A ratio before what it is of: `85 % of`, `14 times`."""
    return f"{_plain(ratio)} of" if ratio < 9.95 else f"{ratio:.0f} times"


# Steps that are too large.

_FIRST = 0.5
"""Adaptive optimizers: of the median ratio at the first step. Measured: 0.98 to 14 at 30 to 1000 times a good rate, at
most 0.14 in healthy trainings."""
_EARLY = 0.3
"""The same where the loss has risen, or the weights have grown, by much."""
_LATE = 0.12
"""From the tenth step on, at two looks. Healthy: at most 0.038."""
_LATE_HARM = 0.06
"""The same with such harm. Measured: 0.087 to 0.12 of SGD at five times a good rate."""
_RISEN = 2.0
"""So many times its first value has the loss been. Measured along with steps of 6 %: 2.9 to 1e9."""
_GROWN = 6.0
"""So many times as large as at first have the weights become. Measured: 2.5 to 310; healthy: at most 3.4."""
_HOT_INPUT = 30.0
"""Where a layer is given numbers of such a size before any step, the steps are not what is wrong. Healthy: up to 3."""


@rule(
    "GL301",
    "step-too-large",
    certainty="scale-free",
    after=2,
    explains=("GL302", "GL303", "GL305", "GL307", "GL40", "GL501", "GL502", "GL6", "GL702", "GL705", "GL706"),
)
def step_too_large(context: Context) -> Iterator[Evidence]:
    """A step moves the weights by a large share of their own size.

    **What it sees.** The norm of a step by the norm of the weights, in the median over matrices: above 50 % at the
    first steps of an adaptive optimizer, above 30 % with harm; later above 12 %, or above 6 % with harm. Harm is a loss
    that has been at twice its first value, or weights that are six times as large while half of the loss is left.
    Weights that begin at zero count as large as torch's default init would make them.

    **Why it hurts.** Such steps leave the region in which the gradient says anything of the loss: units die or
    saturate, the weights grow by orders of magnitude, and later steps are lost against their size.

    **What to do.** Divide the learning rate by ten, or raise it over the first hundred steps.

    **What looks like it and is healthy.** Layers that begin at zero, warm-up, full batches at the edge of stability
    (2 %), one layer alone that goes as far as its targets are, the
    line search of L-BFGS: no finding. Where layers are given huge numbers before the first step, inputs or
    the init are at fault: no more than news.
    """
    steps = _Steps(context)
    if any(one.name in _SEARCHES for one in _counted(context)):
        return
    rates = sorted({settings["lr"] for _, settings, _ in _groups(context, steps.sites) if "lr" in settings})
    everything = list(range(len(steps.sites)))
    groups = {
        rate: [
            place
            for _, settings, columns in _groups(context, steps.sites)
            if settings.get("lr") == rate
            for place in columns
        ]
        for rate in rates
    }
    seen = [
        (columns, worst)
        for columns in groups.values() or [everything]
        if (worst := _too_large(context, steps, columns)) and worst[1] > 3 * _forgotten(context, steps, columns)
    ]
    if not seen:
        return
    is_all = len(seen) == max(len(groups), 1)
    columns, (at, ratio, limit) = max(seen, key=lambda one: one[1][1])
    sites = () if is_all else tuple(steps.sites[place] for place in columns)
    peak, growth = _peak(context), steps.growth(columns)
    harm = ""
    if np.isinf(peak):
        harm = ", and the loss is not finite any more"
    elif peak >= _RISEN:
        harm = f", and the loss has been {peak:.2g} times its first value"
    elif growth >= 3:
        harm = f", and the weights are {growth:.2g} times as large as at first"
    what = "the weights" if is_all else sites[0]
    yield Evidence(
        sites=sites,
        message=f"at step {at} the optimizer moves {what} by {_of(ratio)} their norm (usual: 0.1 to 4 %){harm}.",
        remedy="Divide the learning rate by 10; warm it up if only the first steps are so large.",
        numbers={"update.norm / weight.norm": ratio, "limit": limit, "loss / first loss": peak, "growth": growth},
        severity="info" if _is_hot_at_first(context) else None,
        first_step=min(int(at), _onset(context)) if _onset(context) else int(at),
    )


def _too_large(context: Context, steps: _Steps, columns: Sequence[int]) -> tuple[int, float, float] | None:
    """The step, its ratio and the limit that it exceeds."""
    ratios = steps.medians(columns)
    scale = context.limit(_FIRST) / _FIRST
    begins = int(steps.steps[0])
    is_harmed = _is_harmed(context, steps, columns)
    if not is_harmed and len(steps.places) == 1:
        return None  # the weights of one layer alone go as far as the targets are
    forgetful = [one for one in _counted(context) if one.name in _LONG_FIRST_STEP]
    if forgetful and (context.num_steps < 50 or not _is_above_start(context)):
        return None
    is_adaptive = any(one.is_adaptive for one in _counted(context)) and not forgetful
    early = ratios[(steps.steps - begins <= 2) & np.isfinite(ratios)]
    limit = scale * (_EARLY if is_harmed else _FIRST)
    if begins <= 2 and len(early) > 1 and early[0] > limit and early[1] > limit / 4 and (is_adaptive or is_harmed):
        return begins, float(early[0]), limit
    limit = scale * (_LATE_HARM if is_harmed else _LATE)
    is_over = ratios > limit
    is_over &= steps.steps >= (max(begins + 2, _onset(context) - 10) if is_harmed else begins + 10)
    if is_over.sum() >= (1 if is_harmed else 2):
        place = int(np.flatnonzero(is_over)[0])
        return int(steps.steps[place]), float(ratios[place]), limit
    return None


def _onset(context: Context) -> int:
    """The step at which a loss was first at twice its first value, or not finite; 0 where none was."""
    steps = []
    for one in context.losses:
        if len(one.values) > 1 and _peak_of(one.values) >= _RISEN:
            first = _first_of(one.values)
            is_risen = ~(one.values < _RISEN * first) if first > 0 else ~np.isfinite(one.values)
            steps += [int(one.steps[place]) for place in np.flatnonzero(is_risen)[:1]]
    return min(steps, default=0)


def _is_above_start(context: Context) -> bool:
    """Whether a loss is lately near its first value, above it, or not finite."""
    for one in context.losses:
        lately = float(np.median(one.values[-10:])) if len(one.values) else 0.0
        if len(one.values) > 10 and one.values[0] > 0 and not lately < 0.7 * one.values[0]:
            return True
    return False


def _is_harmed(context: Context, steps: _Steps, columns: Sequence[int]) -> bool:
    """Whether the loss has been far above its first value, or is there again; or the weights have grown without use."""
    if _peak(context) >= _RISEN:
        return True
    left = _left(context)
    if left is not None and left > 0.9 and _rebound(context) >= _REBOUND:
        return True
    return len(steps.places) > 1 and left is not None and left > 0.5 and steps.growth(columns) >= _GROWN


def _forgotten(context: Context, steps: _Steps, columns: Sequence[int]) -> float:
    """The share of the weights that decay alone takes in a step."""
    sites = [steps.sites[place] for place in columns]
    return max((_forgets(one, settings) for one, settings, _ in _groups(context, sites)), default=0.0)


def _is_hot_at_first(context: Context) -> bool:
    """Whether a layer was given huge numbers before any step."""
    inputs = context.inputs
    if "rms" not in inputs or int(inputs.steps[0]) > 0:
        return False
    first = inputs["rms"][0]
    return bool(np.nanmax(first, initial=0.0) > _HOT_INPUT)


# Steps that are too small.

_SMALL = 3e-4
"""Of the median ratio. Measured: at most 1.2e-4 at a thousandth of a good rate; healthy, without warm-up and ends of
schedules, at least 4.7e-4, in fine-tuning."""
_STRAIGHT = 0.9
"""Cosine between the ways of the first and the second half. Measured: 0.97 to 1 against at most 0.85."""
_MOVED = 0.05
"""Of the way gone so far by the weights. Measured: at most 0.033 in 250 steps; healthy: 0.09 and more."""
_LEFT = 0.7
"""Of the loss. Measured: 0.87 to 1; healthy: at most 0.67 after as many steps."""


@rule("GL302", "step-too-small", certainty="scale-free", after=80, holds=2, in_warmup=False, explains=("GL502",))
def step_too_small(context: Context) -> Iterator[Evidence]:
    """The steps are so small that training goes straight on, hardly gets anywhere, and could go far faster.

    **What it sees.** All of this, after eighty steps: the norm of a step is below 0.03 % of that of the weights; in
    all steps together the weights have moved by less than 5 %; the ways of the first and of the second half have the
    same direction (a cosine above 0.9); the loss has kept at least 70 % of its first value.

    **Why it hurts.** Where the direction does not change, ten steps do what one of ten times the size would do.

    **What to do.** Multiply the learning rate by 10 to 100.

    **What looks like it and is healthy.** Fine-tuning, whose loss falls and whose way turns; warm-up; the end of a
    schedule; a training that has converged, which does not go straight on: no finding.
    """
    steps = _Steps(context)
    settings = [group for one in _counted(context) for group in one.groups if "lr" in group]
    rates = context.learning_rates
    if len(rates) and rates[:, 1].max() == 0 and context.num_steps >= 20:
        yield Evidence(
            message=f"the learning rate has been 0 in all {context.num_steps} steps.",
            remedy="Give the optimizer a learning rate, and look at the first values that the schedule multiplies.",
        )
        return
    ratios = steps.medians()
    recent = ratios[-5:][np.isfinite(ratios[-5:])]
    if not len(recent) or recent.max() > context.limit(_SMALL) or _is_spent(context) is not None:
        return
    way = _way(context)
    left = _left(context)
    if way is None or way[0] > _MOVED or way[1] < _STRAIGHT or (left is not None and left < _LEFT):
        return
    if left is None and recent.max() > context.limit(_SMALL) / 3:
        return
    ratio, (moved, cosine) = float(np.median(recent)), way
    rate = f" at a learning rate of {max(group['lr'] for group in settings):.2g}" if settings else ""
    yield Evidence(
        message=f"steps move the weights by {_plain(ratio)} of their norm (usual: 0.1 to 4 %){rate}, by "
        f"{_plain(moved)} in {context.num_steps} steps, and always in the same direction (cosine {cosine:.2f}).",
        remedy="Multiply the learning rate by 10 to 100.",
        numbers={
            "update.norm / weight.norm": ratio,
            "limit": context.limit(_SMALL),
            "moved": moved,
            "cosine of the two halves": cosine,
            "loss / first loss": left if left is not None else float("nan"),
        },
    )


def _way(context: Context) -> tuple[float, float] | None:
    """How far the weights have moved by their size, and the cosine between the first and the second half of the way."""
    samples = context.samples
    if "weight" not in samples:
        return None
    weights, steps = samples["weight"], samples.steps
    known = np.flatnonzero(np.isfinite(weights).any((1, 2)))
    if len(known) < 5:
        return None
    weights, steps = weights[known], steps[known]
    half = int(np.argmin(np.abs(steps - (steps[0] + steps[-1]) / 2)))
    first, second = weights[half] - weights[0], weights[-1] - weights[half]
    sizes = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    is_known = np.isfinite(sizes) & (sizes > 0)
    lengths = np.sqrt((weights[0] ** 2).sum(1))
    if not is_known.any():
        return None
    moved = np.sqrt(((weights[-1] - weights[0]) ** 2).sum(1))[is_known] / np.maximum(lengths[is_known], 1e-30)
    cosines = (first * second).sum(1)[is_known] / sizes[is_known]
    return float(np.median(moved)), float(np.median(cosines))


# Weight decay.

_DECAY = 0.5
"""Decay by the step, or by the gradient. Measured: 0.8 to 7 (coupled: up to 1e7); healthy: at most 0.063."""
_FORGETS = 3e-3
"""The share of a weight that decay takes in a step. Measured: 0.03 to 0.1; healthy: at most 0.001."""
_KEPT = 0.3
"""Of the loss, where decay is coupled and the gradient may have vanished since the loss has been learned."""


@rule(
    "GL303",
    "decay-dominates",
    certainty="scale-free",
    after=20,
    holds=2,
    explains=("GL302", "GL305", "GL306", "GL307", "GL401", "GL402", "GL407", "GL501", "GL502", "GL6"),
)
def decay_dominates(context: Context) -> Iterator[Evidence]:
    """Weight decay pulls at the weights as strongly as the loss does.

    **What it sees.** The settings of the optimizer with the norms of weights, steps and gradients. Where decay is
    decoupled (AdamW): it is above half of the step, and takes 0.3 % of each weight in a step. SGD: it is above half of
    the gradient, and takes 0.3 % in a step, momentum counted in, while 30 % of the loss are left. Adam, which adds
    decay to the gradient: it is above half of the gradient while 30 % of the loss are left.

    **Why it hurts.** The weights shrink until what the loss wants and decay are in balance, which is far from a
    minimum of the loss; in Adam the running mean follows the weights in place of the loss.

    **What to do.** Divide weight decay by 10 to 100. A value of AdamW is not one for SGD or Adam.

    **What looks like it and is healthy.** AdamW at its equilibrium; ridge regression; decay that is seen beside the
    small gradients of a loss that has been learned: no finding.
    """
    steps = _Steps(context)
    for one, settings, columns in _groups(context, steps.sites):
        seen = _decay(context, steps, one, settings, columns)
        if seen is not None:
            share, forgets = seen
            decay, rate = settings["weight_decay"], settings.get("lr", 0.0)
            against = "step" if one.has_decoupled_decay else "gradient"
            takes = f" and takes {_plain(forgets)} of each weight in a step" if forgets >= _FORGETS else ""
            yield Evidence(
                message=f"weight decay of {decay:.3g} in {one.name} (learning rate {rate:.3g}) is {share:.2g} "
                f"times the {against}{takes}: the weights follow it rather than the loss.",
                remedy="Divide weight_decay by 10 to 100."
                + ("" if one.has_decoupled_decay or not one.is_adaptive else " Or use AdamW, which decays apart."),
                numbers={f"decay / {against}": share, "limit": context.limit(_DECAY), "decay a step": forgets},
            )
            return


def _decay(
    context: Context, steps: _Steps, one: OptimizerFacts, settings: Mapping[str, float], columns: Sequence[int]
) -> tuple[float, float] | None:
    """What decay is by the step or the gradient, and what it takes of a weight in a step; None where that is usual."""
    decay, rate = settings.get("weight_decay", 0.0), settings.get("lr", 0.0)
    if decay <= 0 or rate <= 0:
        return None
    places = steps.places[list(columns)]
    weights = context.readings["weight.norm"][-4:, places]
    against = "update.norm" if one.has_decoupled_decay else "weight_grad.norm@clipped"
    strength = (rate * decay if one.has_decoupled_decay else decay) * weights
    other = context.readings[against][-4:, places]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = _medians(np.where(other > 0, strength / other, np.nan))
    if not np.isfinite(shares).any():
        return None
    share = _median(shares)
    if share < context.limit(_DECAY):
        return None
    left = _left(context)
    if one.is_adaptive and not one.has_decoupled_decay:
        return (share, 0.0) if left is not None and left > _KEPT else None
    if not one.has_decoupled_decay and left is not None and left < _KEPT:
        return None
    if len(steps.places) == 1 and steps.growth() > 1:
        return None  # a ridge regression at its solution, where both are equal
    forgets = _forgets(one, settings)
    return (share, forgets) if forgets >= _FORGETS else None


def _forgets(one: OptimizerFacts, settings: Mapping[str, float]) -> float:
    """The share that decay takes of a weight in a step; 0 where decay is added to what Adam normalizes."""
    if one.is_adaptive and not one.has_decoupled_decay:
        return 0.0
    momentum = 0.0 if one.is_adaptive else settings.get("momentum", 0.0)
    return settings.get("lr", 0.0) * settings.get("weight_decay", 0.0) / max(1 - momentum, 1e-3)


# Clipping.

_CLIPPED = 0.02
"""What clipping leaves of the gradient. Measured: 0.001 to 0.008; healthy: at least 0.32."""
_CLIPPED_STEP = 1e-3
"""Of the ratio: where steps are larger, the learning rate makes up for it. Measured: at most 2.5e-4."""
_STEADY = 0.05
"""Spread of the clipped norm by its mean: what is clipped has always the same norm, what is unscaled has not. Measured:
at most 2e-6; healthy: 0.16."""


@rule("GL304", "clip-too-small", certainty="scale-free", after=20, holds=2, explains=("GL302", "GL501", "GL502"))
def clip_too_small(context: Context) -> Iterator[Evidence]:
    """Clipping leaves next to nothing of the gradients of SGD.

    **What it sees.** The norm of all gradients after backward, and when the optimizer uses them: less than 2 % is left,
    the norm that is left is the same at each step, and the steps are below 0.1 % of the weights.

    **Why it hurts.** A step of SGD is as long as its gradient: clipping divides the learning rate by fifty and more.

    **What to do.** Raise the clip norm to the usual norm of the gradients; it is there for the rare larger ones.

    **What looks like it and is healthy.** Adam, which divides by the size of the gradients: silent. Gradients that are
    unscaled, or divided by their number, whose norm varies as before: no finding.
    """
    counted = _counted(context)
    if not counted or any(one.is_adaptive for one in counted):
        return
    before, after = (_total(context, name) for name in ("weight_grad.norm", "weight_grad.norm@clipped"))
    is_known = np.isfinite(before) & np.isfinite(after) & (before > 0) & (after > 0)
    before, after = before[is_known][-12:], after[is_known][-12:]
    if len(after) < 3:
        return
    share, spread = float(np.median(after / before)), float(np.std(after) / np.mean(after))
    ratio = _median(_Steps(context).medians()[-12:])
    is_steady = spread < _STEADY and spread < float(np.std(before) / np.mean(before)) / 3
    if share > context.limit(_CLIPPED) or not is_steady or not ratio < _CLIPPED_STEP:
        return
    yield Evidence(
        message=f"clipping leaves {_plain(share)} of the gradients: their norm is {np.median(before):.2g}, and they "
        f"are clipped to {np.median(after):.2g}, so that steps are {_plain(ratio)} of the weights (usual: 0.1 to 4 %).",
        remedy=f"Raise the clip norm to the usual norm of the gradients, {np.median(before):.2g}.",
        numbers={"clipped / unclipped": share, "limit": context.limit(_CLIPPED), "update.norm / weight.norm": ratio},
    )


def _total(context: Context, name: str) -> np.ndarray:
    """[looks] the norm over all parameters."""
    norms = context.readings[name]
    return np.where(np.isfinite(norms).any(1), np.sqrt(np.nansum(norms**2, 1)), np.nan)


# Adam's eps.

_USUAL_EPS = 1e-6
"""A larger one is meant."""
_MOST_EPS = 10.0
"""By eps, the gradients of any parameter, the biases at the loss among them, which are as large as the loss is."""


@rule("GL305", "under-eps", certainty="scale-free", after=5, holds=2, explains=("GL302", "GL501", "GL502"))
def under_eps(context: Context) -> Iterator[Evidence]:
    """The gradients are smaller than the eps by which Adam keeps from dividing by zero.

    **What it sees.** The root mean square of a parameter's gradient, rows without gradient left out: in the median
    over parameters below the optimizer's eps at every look since the first, and ten times that nowhere. Healthy
    trainings begin at 1e-4 and more, and eps is 1e-8.

    **Why it hurts.** Adam makes steps of the size of the learning rate by dividing by the size of the gradient. Below
    eps it divides by eps, and the steps shrink with the gradients.

    **What to do.** Multiply the loss back to its own scale, or make eps smaller.

    **What looks like it and is healthy.** Gradients that become small as the loss is learned; layers and rows
    without gradient; gradients that vanish on their way from a loss of the usual size; an eps above 1e-6, which
    somebody has meant: no finding.
    """
    readings = context.readings
    facts = [context.parameter(site) for site in readings.sites]
    trained = np.array([one is not None and one.requires_grad and not is_embedding(one) for one in facts])
    numel = np.array([one.numel if one is not None else 1 for one in facts])
    norms = readings["weight_grad.norm@clipped"]
    silent = np.nan_to_num(readings["weight_grad.zero_rows"]) if "weight_grad.zero_rows" in readings else norms * 0
    with np.errstate(all="ignore"):
        sizes = norms / np.sqrt(numel * np.maximum(1 - silent, 1e-9))
    sizes = np.where((sizes > 0) & trained, sizes, np.nan)
    for one, settings, columns in _groups(context, readings.sites):
        eps = settings.get("eps", 0.0)
        if not one.is_adaptive or not 0 < eps <= _USUAL_EPS or not trained[columns].any():
            continue
        medians = _medians(sizes[:, columns])
        is_known = np.isfinite(medians)
        medians = medians[is_known]
        limit = context.limit(1.0) * eps
        if len(medians) < 3 or int(readings.steps[0]) > 10 or medians.max() >= limit:
            continue
        if np.nanmax(sizes[is_known]) >= _MOST_EPS * limit:
            continue  # the loss has its usual size, and its gradients vanish on the way
        yield Evidence(
            message=f"the gradients have a root mean square of {np.median(medians):.1g} where the eps of {one.name} is "
            f"{eps:.1g}: it divides by its eps, and steps shrink with the gradients.",
            remedy="Multiply the loss back to its own scale, or divide eps by 1000 and more.",
            numbers={"weight_grad rms": float(np.median(medians)), "eps": eps, "limit": limit},
        )
        return


# Momentum.

_MUCH = 0.97
"""A momentum, which carries a step on for 33 more."""
_UPHILL = 0.4
"""The share of looks at which what momentum carries on goes uphill. Measured: 0.58 to 0.75. At 0.9 it comes to 0.64 of
healthy trainings near a minimum: hence the momentum, and the harm."""
_REBOUND = 2.0
"""The loss by its least. Measured: 2.8 to 6.8 (or weights 11 to 23 times as large); healthy: at most 2.1."""


@rule(
    "GL306",
    "momentum-oscillation",
    certainty="scale-free",
    after=60,
    holds=2,
    explains=("GL301", "GL401", "GL402", "GL405", "GL501", "GL6", "GL702", "GL705", "GL706"),
)
def momentum_oscillation(context: Context) -> Iterator[Evidence]:
    """Momentum carries the weights past the minimum and up the other side, again and again.

    **What it sees.** A momentum of 0.97 or more; at 40 % of the looks the gradient is against what momentum carries on
    of earlier steps, at places of the matrices that are fixed; and the weights have grown six times, or the loss is at
    twice its least value.

    **Why it hurts.** A momentum of 0.99 adds up a hundred gradients: it needs hundreds of steps to turn around.

    **What to do.** Use a momentum of 0.9, or divide the learning rate by ten.

    **What looks like it and is healthy.** A momentum of 0.9 near a minimum, full batches at the edge of stability,
    much momentum with a small learning rate: no finding.
    """
    for one in _counted(context):
        momentum = max((max(group.get("momentum", 0.0), group.get("beta1", 0.0)) for group in one.groups), default=0.0)
        if momentum < _MUCH:
            continue
        carried = _uphill(context, one)
        if carried is None or carried[0] < context.limit(_UPHILL) or carried[1] < 0:
            continue
        growth, rebound = _Steps(context).growth(), _rebound(context)
        if growth < _GROWN and rebound < _REBOUND:
            continue
        harm = (
            f"the loss is {rebound:.2g} times its least value"
            if rebound >= _REBOUND
            else f"the weights have become {growth:.2g} times as large"
        )
        yield Evidence(
            message=f"a momentum of {momentum:.3g} carries the weights uphill at {_plain(carried[0])} of the steps "
            f"looked at, and {harm}.",
            remedy="Use a momentum of 0.9, or divide the learning rate by 10.",
            numbers={"uphill": carried[0], "limit": context.limit(_UPHILL), "growth": growth, "loss / least": rebound},
            first_step=int(context.samples.steps[0]),
        )
        return


def _uphill(context: Context, one: OptimizerFacts) -> tuple[float, float] | None:
    """At which share of looks what is carried on goes along the gradient, and the mean cosine between the two."""
    samples = context.samples
    if "weight_grad" not in samples or "update" not in samples:
        return None
    gradients, updates = samples["weight_grad"], samples["update"]
    if gradients.shape != updates.shape:
        return None
    begins = int(samples.steps[0])
    rate = max((group.get("lr", 0.0) for group in one.groups), default=0.0)
    is_nesterov = any(group.get("nesterov") for group in one.groups)
    own = 0.0 if one.is_adaptive else rate * (1 + is_nesterov * one.groups[0].get("momentum", 0.0))
    carried = updates + own * gradients
    dots = np.nansum(gradients * carried, (1, 2))
    sizes = np.sqrt(np.nansum(gradients**2, (1, 2)) * np.nansum(carried**2, (1, 2)))
    is_known = (samples.steps - begins >= 10) & np.isfinite(dots) & (sizes > 0)
    if is_known.sum() < 5:
        return None
    cosines = dots[is_known] / sizes[is_known]
    return float((cosines > 0).mean()), float(cosines.mean())


def _rebound(context: Context) -> float:
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


# Warm-up.

_HOT = 0.05
"""Of the median ratio at the first steps. Measured: 0.096 to 0.098; of healthy ones that have learned as little: 0.03
to 0.14."""
_FADED = 10.0
"""So many times smaller have the gradients become. Measured: 18 to 7000; where as little was learned: 1.1 and 11."""
_FADED_STEP = 30.0
"""So many times shorter the steps. Measured: 75 to 1000; where as little was learned: at most 13."""
_UNLEARNED = 0.6
"""Of the loss. Measured: 0.7 to 0.83."""
_JUMP = 1.05
"""By its first value the loss. Measured: 1.1 to 1.33."""


@rule(
    "GL307",
    "missing-warmup",
    certainty="scale-free",
    after=60,
    holds=2,
    explains=("GL302", "GL401", "GL402", "GL407", "GL501", "GL502", "GL601"),
)
def missing_warmup(context: Context) -> Iterator[Evidence]:
    """The first steps of Adam, at the full learning rate, have thrown the weights to where nothing is learned.

    **What it sees.** All of this, of an adaptive optimizer whose learning rate does not rise at first: the first steps
    moved the weights by 5 % of their norm and more; the loss rose above its first value; since then the gradients have
    shrunk ten times and the steps thirty times; and 60 % of the loss are left.

    **Why it hurts.** Adam divides by the size of a few gradients at first, so that its first steps are as long as any,
    in directions that mean little. Deep nets with the norm after the residual sum do not come back from that.

    **What to do.** Raise the learning rate from near zero over the first 1 to 5 % of the steps, at least fifty.

    **What looks like it and is healthy.** Adam without warm-up in nets that bear it, which learn; gradients that
    shrink as the loss is learned: no finding.
    """
    adaptive = [one for one in _counted(context) if one.is_adaptive]
    rates = context.learning_rates
    is_rising = len(rates) > 1 and rates[1, 0] <= 20 and rates[1, 1] > rates[0, 1]
    left, peak = _left(context), _peak(context)
    if not adaptive or is_rising or left is None or left < _UNLEARNED or peak < _JUMP:
        return
    steps = _Steps(context)
    begins = int(steps.steps[0])
    ratios = steps.medians()
    norms = context.readings["weight_grad.norm@clipped"][:, steps.places]
    gradients = _medians(np.where(norms > 0, norms, np.nan))
    is_known = np.isfinite(ratios) & np.isfinite(gradients)
    ratios, gradients, at = ratios[is_known], gradients[is_known], steps.steps[is_known] - begins
    if begins > 2 or len(at) < 8 or not (at <= 2).any():
        return
    first = float(ratios[at <= 2].max())
    faded = float(gradients[at <= 10].max() / np.median(gradients[-5:]))
    shorter = first / float(np.median(ratios[-5:]))
    if first < context.limit(_HOT) or faded < _FADED or shorter < _FADED_STEP:
        return
    yield Evidence(
        message=f"without warm-up the first steps of {adaptive[0].name} move the weights by {_of(first)} their norm; "
        f"the gradients have since become {faded:.2g} times smaller, with {_plain(left)} of the loss left.",
        remedy="Raise the learning rate from near zero over the first 1 to 5 % of the steps, at least 50.",
        numbers={
            "update.norm / weight.norm at first": first,
            "limit": context.limit(_HOT),
            "gradient at first / now": faded,
            "loss / first loss": left,
        },
        first_step=begins,
    )


# Schedules.

_SPENT = 0.01
"""Of the largest learning rate."""
_SPENT_FOR = 0.3
"""Of the run so far. Cosine to its end: 0.064; steps of 10 in thirds: 0."""
_SPENT_STEP = 2e-4
"""Of the ratio: where steps are larger, another optimizer has gone on."""


@rule("GL308", "rate-ended", certainty="scale-free", after=60, holds=2, explains=("GL302", "GL305", "GL502"))
def rate_ended(context: Context) -> Iterator[Evidence]:
    """The learning rate was spent long before the end.

    **What it sees.** The largest learning rate at each step: below 1 % of its peak for the last 30 % of the run and
    more, with steps below 0.02 % of the weights.

    **Why it hurts.** Whatever comes after does not learn.

    **What to do.** Give the schedule the number of steps that there are: many count epochs, and are stepped at each
    batch.

    **What looks like it and is healthy.** A cosine or a line down to zero at the end (6 % of the run below 1 %), warm
    restarts, steps of ten in thirds of the run: no finding.
    """
    spent = _is_spent(context)
    if spent is None:
        return
    ratios = _Steps(context).medians()[-5:]
    ratio = float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else 0.0
    if ratio > _SPENT_STEP:
        return
    since, rate, peak = spent
    going = [one for one in _counted(context) if one.last_step >= context.step - 2 and one.num_steps]
    if going and all(context.num_steps - one.num_steps >= 0.9 * since for one in going):
        return  # another optimizer, of later
    yield Evidence(
        message=f"the learning rate was spent at step {since} of {context.num_steps}: it is {_plain(rate / peak)} of "
        f"its peak of {peak:.2g}.",
        remedy="Give the schedule the number of optimizer steps of the whole run, or step it once an epoch.",
        numbers={"rate / peak": rate / peak, "limit": _SPENT, "spent for": 1 - since / context.num_steps},
        first_step=since,
    )


def _is_spent(context: Context) -> tuple[int, float, float] | None:
    """Since when the learning rate has been below 1 % of its peak, what it is, and the peak; None where it is not."""
    rates = context.learning_rates
    if len(rates) < 2 or context.num_steps < 30:
        return None
    peak = float(rates[:, 1].max())
    above = np.flatnonzero(rates[:, 1] >= _SPENT * (1 - 1e-6) * peak)
    if peak <= 0 or int(above[-1]) == len(rates) - 1:
        return None
    since = int(rates[above[-1] + 1, 0])
    is_long = context.num_steps - since > context.limit(_SPENT_FOR) * context.num_steps
    return (since, float(rates[-1, 1]), peak) if is_long else None
