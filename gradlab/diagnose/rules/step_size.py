"""The size of a step by that of the weights: too large, too small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradlab.diagnose.context import Context
from gradlab.diagnose.progress import (
    GROWN,
    LONG_FIRST_STEP,
    REBOUND,
    SEARCHES,
    Steps,
    counted_optimizers,
    decay_of_step,
    first_loss,
    groups_of,
    loss_left,
    loss_peak,
    loss_rebound,
    of_norm,
    peak_of,
    percent,
)
from gradlab.diagnose.registry import Evidence, rule
from gradlab.diagnose.rules.schedule import is_spent

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
    steps = Steps(context)
    if any(one.name in SEARCHES for one in counted_optimizers(context)):
        return
    rates = sorted({settings["lr"] for _, settings, _ in groups_of(context, steps.sites) if "lr" in settings})
    everything = list(range(len(steps.sites)))
    groups = {
        rate: [
            place
            for _, settings, columns in groups_of(context, steps.sites)
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
    peak, growth = loss_peak(context), steps.growth(columns)
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
        message=f"at step {at} the optimizer moves {what} by {of_norm(ratio)} their norm (usual: 0.1 to 4 %){harm}.",
        remedy="Divide the learning rate by 10; warm it up if only the first steps are so large.",
        numbers={"update.norm / weight.norm": ratio, "limit": limit, "loss / first loss": peak, "growth": growth},
        severity="info" if _is_hot_at_first(context) else None,
        first_step=min(int(at), _onset(context)) if _onset(context) else int(at),
    )


def _too_large(context: Context, steps: Steps, columns: Sequence[int]) -> tuple[int, float, float] | None:
    """The step, its ratio and the limit that it exceeds."""
    ratios = steps.medians(columns)
    scale = context.limit(_FIRST) / _FIRST
    begins = int(steps.steps[0])
    is_harmed = _is_harmed(context, steps, columns)
    if not is_harmed and len(steps.places) == 1:
        return None  # the weights of one layer alone go as far as the targets are
    forgetful = [one for one in counted_optimizers(context) if one.name in LONG_FIRST_STEP]
    if forgetful and (context.num_steps < 50 or not _is_above_start(context)):
        return None
    is_adaptive = any(one.is_adaptive for one in counted_optimizers(context)) and not forgetful
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
        if len(one.values) > 1 and peak_of(one.values) >= _RISEN:
            first = first_loss(one.values)
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


def _is_harmed(context: Context, steps: Steps, columns: Sequence[int]) -> bool:
    """Whether the loss has been far above its first value, or is there again; or the weights have grown without use."""
    if loss_peak(context) >= _RISEN:
        return True
    left = loss_left(context)
    if left is not None and left > 0.9 and loss_rebound(context) >= REBOUND:
        return True
    return len(steps.places) > 1 and left is not None and left > 0.5 and steps.growth(columns) >= GROWN


def _forgotten(context: Context, steps: Steps, columns: Sequence[int]) -> float:
    """The share of the weights that decay alone takes in a step."""
    sites = [steps.sites[place] for place in columns]
    return max((decay_of_step(one, settings) for one, settings, _ in groups_of(context, sites)), default=0.0)


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
    steps = Steps(context)
    settings = [group for one in counted_optimizers(context) for group in one.groups if "lr" in group]
    rates = context.learning_rates
    if len(rates) and rates[:, 1].max() == 0 and context.num_steps >= 20:
        yield Evidence(
            message=f"the learning rate has been 0 in all {context.num_steps} steps.",
            remedy="Give the optimizer a learning rate, and look at the first values that the schedule multiplies.",
        )
        return
    ratios = steps.medians()
    recent = ratios[-5:][np.isfinite(ratios[-5:])]
    if not len(recent) or recent.max() > context.limit(_SMALL) or is_spent(context) is not None:
        return
    way = _way(context)
    left = loss_left(context)
    if way is None or way[0] > _MOVED or way[1] < _STRAIGHT or (left is not None and left < _LEFT):
        return
    if left is None and recent.max() > context.limit(_SMALL) / 3:
        return
    ratio, (moved, cosine) = float(np.median(recent)), way
    rate = f" at a learning rate of {max(group['lr'] for group in settings):.2g}" if settings else ""
    yield Evidence(
        message=f"steps move the weights by {percent(ratio)} of their norm (usual: 0.1 to 4 %){rate}, by "
        f"{percent(moved)} in {context.num_steps} steps, and always in the same direction (cosine {cosine:.2f}).",
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
