"""Settings of optimizers that work against the training: weight decay, clipping, Adam's eps, momentum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gradlab.diagnose.context import Context, OptimizerFacts, is_embedding
from gradlab.diagnose.progress import (
    GROWN,
    REBOUND,
    Steps,
    counted_optimizers,
    decay_of_step,
    groups_of,
    loss_left,
    loss_rebound,
    median,
    medians_of,
    percent,
)
from gradlab.diagnose.registry import Evidence, rule

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
    steps = Steps(context)
    for one, settings, columns in groups_of(context, steps.sites):
        seen = _decay(context, steps, one, settings, columns)
        if seen is not None:
            share, forgets = seen
            decay, rate = settings["weight_decay"], settings.get("lr", 0.0)
            against = "step" if one.has_decoupled_decay else "gradient"
            takes = f" and takes {percent(forgets)} of each weight in a step" if forgets >= _FORGETS else ""
            yield Evidence(
                message=f"weight decay of {decay:.3g} in {one.name} (learning rate {rate:.3g}) is {share:.2g} "
                f"times the {against}{takes}: the weights follow it rather than the loss.",
                remedy="Divide weight_decay by 10 to 100."
                + ("" if one.has_decoupled_decay or not one.is_adaptive else " Or use AdamW, which decays apart."),
                numbers={f"decay / {against}": share, "limit": context.limit(_DECAY), "decay a step": forgets},
            )
            return


def _decay(
    context: Context, steps: Steps, one: OptimizerFacts, settings: Mapping[str, float], columns: Sequence[int]
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
        shares = medians_of(np.where(other > 0, strength / other, np.nan))
    if not np.isfinite(shares).any():
        return None
    share = median(shares)
    if share < context.limit(_DECAY):
        return None
    left = loss_left(context)
    if one.is_adaptive and not one.has_decoupled_decay:
        return (share, 0.0) if left is not None and left > _KEPT else None
    if not one.has_decoupled_decay and left is not None and left < _KEPT:
        return None
    if len(steps.places) == 1 and steps.growth() > 1:
        return None  # a ridge regression at its solution, where both are equal
    forgets = decay_of_step(one, settings)
    return (share, forgets) if forgets >= _FORGETS else None


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
    counted = counted_optimizers(context)
    if not counted or any(one.is_adaptive for one in counted):
        return
    before, after = (_total(context, name) for name in ("weight_grad.norm", "weight_grad.norm@clipped"))
    is_known = np.isfinite(before) & np.isfinite(after) & (before > 0) & (after > 0)
    before, after = before[is_known][-12:], after[is_known][-12:]
    if len(after) < 3:
        return
    share, spread = float(np.median(after / before)), float(np.std(after) / np.mean(after))
    ratio = median(Steps(context).medians()[-12:])
    is_steady = spread < _STEADY and spread < float(np.std(before) / np.mean(before)) / 3
    if share > context.limit(_CLIPPED) or not is_steady or not ratio < _CLIPPED_STEP:
        return
    yield Evidence(
        message=f"clipping leaves {percent(share)} of the gradients: their norm is {np.median(before):.2g}, and they "
        f"are clipped to {np.median(after):.2g}, so that steps are {percent(ratio)} of the weights (usual: 0.1 to "
        f"4 %).",
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
    for one, settings, columns in groups_of(context, readings.sites):
        eps = settings.get("eps", 0.0)
        if not one.is_adaptive or not 0 < eps <= _USUAL_EPS or not trained[columns].any():
            continue
        medians = medians_of(sizes[:, columns])
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
    for one in counted_optimizers(context):
        momentum = max((max(group.get("momentum", 0.0), group.get("beta1", 0.0)) for group in one.groups), default=0.0)
        if momentum < _MUCH:
            continue
        carried = _uphill(context, one)
        if carried is None or carried[0] < context.limit(_UPHILL) or carried[1] < 0:
            continue
        growth, rebound = Steps(context).growth(), loss_rebound(context)
        if growth < GROWN and rebound < REBOUND:
            continue
        harm = (
            f"the loss is {rebound:.2g} times its least value"
            if rebound >= REBOUND
            else f"the weights have become {growth:.2g} times as large"
        )
        yield Evidence(
            message=f"a momentum of {momentum:.3g} carries the weights uphill at {percent(carried[0])} of the steps "
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
