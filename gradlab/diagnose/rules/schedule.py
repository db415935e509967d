"""Learning rates over time: a warm-up that is missing, a schedule that has ended."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.diagnose.context import Context
from gradlab.diagnose.progress import (
    Steps,
    counted_optimizers,
    loss_left,
    loss_peak,
    medians_of,
    of_norm,
    percent,
)
from gradlab.diagnose.registry import Evidence, rule

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
    adaptive = [one for one in counted_optimizers(context) if one.is_adaptive]
    rates = context.learning_rates
    is_rising = len(rates) > 1 and rates[1, 0] <= 20 and rates[1, 1] > rates[0, 1]
    left, peak = loss_left(context), loss_peak(context)
    if not adaptive or is_rising or left is None or left < _UNLEARNED or peak < _JUMP:
        return
    steps = Steps(context)
    begins = int(steps.steps[0])
    ratios = steps.medians()
    norms = context.readings["weight_grad.norm@clipped"][:, steps.places]
    gradients = medians_of(np.where(norms > 0, norms, np.nan))
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
        message=f"without warm-up the first steps of {adaptive[0].name} move the weights by {of_norm(first)} their "
        f"norm; the gradients have since become {faded:.2g} times smaller, with {percent(left)} of the loss left.",
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

SPENT = 0.01
"""Of the largest learning rate."""
SPENT_FOR = 0.3
"""Of the run so far. Cosine to its end: 0.064; steps of 10 in thirds: 0."""
SPENT_STEP = 2e-4
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
    spent = is_spent(context)
    if spent is None:
        return
    ratios = Steps(context).medians()[-5:]
    ratio = float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else 0.0
    if ratio > SPENT_STEP:
        return
    since, rate, peak = spent
    going = [one for one in counted_optimizers(context) if one.last_step >= context.step - 2 and one.num_steps]
    if going and all(context.num_steps - one.num_steps >= 0.9 * since for one in going):
        return  # another optimizer, of later
    yield Evidence(
        message=f"the learning rate was spent at step {since} of {context.num_steps}: it is {percent(rate / peak)} of "
        f"its peak of {peak:.2g}.",
        remedy="Give the schedule the number of optimizer steps of the whole run, or step it once an epoch.",
        numbers={"rate / peak": rate / peak, "limit": SPENT, "spent for": 1 - since / context.num_steps},
        first_step=since,
    )


def is_spent(context: Context) -> tuple[int, float, float] | None:
    """Since when the learning rate has been below 1 % of its peak, what it is, and the peak; None where it is not."""
    rates = context.learning_rates
    if len(rates) < 2 or context.num_steps < 30:
        return None
    peak = float(rates[:, 1].max())
    above = np.flatnonzero(rates[:, 1] >= SPENT * (1 - 1e-6) * peak)
    if peak <= 0 or int(above[-1]) == len(rates) - 1:
        return None
    since = int(rates[above[-1] + 1, 0])
    is_long = context.num_steps - since > context.limit(SPENT_FOR) * context.num_steps
    return (since, float(rates[-1, 1]), peak) if is_long else None
