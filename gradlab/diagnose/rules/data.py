"""The data: numbers that are too large or not finite, targets far from zero, inputs that give the target away, ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.diagnose.context import Abstain, Context, History, TargetFacts
from gradlab.diagnose.registry import Evidence, rule


@rule(
    "GL510",
    "input-scale",
    certainty="scale-free",
    holds=2,
    explains=("GL3", "GL4", "GL50", "GL6", "GL702", "GL705", "GL706"),
)
def input_scale(context: Context) -> Iterator[Evidence]:
    """What the first layer is given is far from the size that its weights are made for, or its columns are.

    **What it sees.** The data that goes into layers before which there is no other layer: a root mean square above 10,
    or a column (channel) ten thousand times larger than another, where both are measured over what is not zero in them.

    **Why it hurts.** Weights start at a size for inputs around 1. Outputs and gradients are as many times too large:
    either steps are too large, units saturate or die, or a learning rate that bears this is too small for all other
    layers. Columns in small units are lost beside those in large ones.

    **What to do.** Subtract the mean and divide by the standard deviation, of each column, of the training data.

    **What looks like it and is healthy.** A model that normalizes its input itself: it is measured after that. A first
    layer whose output goes straight into a batch norm. Ids. Pixels that are mostly zero.

    **How to silence it.** `--ignore GL510`, or a larger limit: `limits: {GL510: 100}`.
    """
    inputs = context.inputs
    is_data, rms, columns = inputs.last("is_data"), inputs.last("rms"), inputs.last("columns")
    judged = (is_data > 0) & ~(inputs.last("is_normalised") > 0)
    too_large = np.flatnonzero(judged & (rms > context.limit(INPUT_RMS)))
    uneven = np.flatnonzero(judged & (columns > COLUMNS))
    if len(too_large):
        first = int(too_large[0])
        yield Evidence(
            sites=tuple(inputs.sites[place] for place in too_large),
            message=f"the data that {inputs.sites[first]} is given has a root mean square of {rms[first]:.3g}, where "
            f"its weights are made for about 1.",
            numbers={"rms": float(rms[first]), "columns": float(columns[first])},
            remedy="Standardise the inputs: subtract the mean of the training data, divide by its standard deviation.",
        )
    elif len(uneven):
        first = int(uneven[0])
        yield Evidence(
            sites=tuple(inputs.sites[place] for place in uneven),
            message=f"of the columns that {inputs.sites[first]} is given the largest is {columns[first]:.3g} times the "
            f"smallest: what is in the small ones is lost.",
            numbers={"columns": float(columns[first]), "rms": float(rms[first])},
            remedy="Standardise each column of the inputs.",
        )


INPUT_RMS = 10.0
COLUMNS = 1e4


@rule(
    "GL511",
    "target-shift",
    certainty="scale-free",
    explains=("GL3", "GL4", "GL501", "GL502", "GL702", "GL705", "GL706"),
)
def target_shift(context: Context) -> Iterator[Evidence]:
    """The target of a regression lies far from zero, by its own spread.

    **What it sees.** The target that a loss function for numbers has kept: its mean is more than ten times its standard
    deviation away from zero, and the first predictions are as far from it.

    **Why it hurts.** The model has to learn the mean first. Until then errors are all alike and large, so that steps go
    to it alone: gradients are too large, or a clipped or Huber loss takes very long to get there.

    **What to do.** Standardise the target, or start the last layer's bias at its mean.

    **What looks like it and is healthy.** A model that turns its output into the target's unit itself, or whose bias
    starts there: its first predictions are near. Targets that are all the same, as those of a least-squares GAN.

    **How to silence it.** `--ignore GL511`.
    """
    for step, losses in _by_step(context):
        if step > FIRST_STEPS:
            return
        for one in losses:
            if _is_shifted(one, context.limit(SHIFT)):
                what = "the target minus the prediction" if one.is_difference else "the target"
                yield Evidence(
                    message=f"{what} has a mean of {one.mean:.4g} and a standard deviation of {one.std:.3g}: the model "
                    f"has to learn the mean before it can tell one sample from another.",
                    numbers={"mean": one.mean, "std": one.std},
                    remedy="Standardise the target: subtract its mean, divide by its standard deviation.",
                    first_step=0,
                )
                return


SHIFT = 10.0
FIRST_STEPS = 2
REGRESSIONS = ("MseLoss", "SmoothL1Loss", "HuberLoss", "L1Loss", "Pow", "Abs")


def _by_step(context: Context) -> Iterator[tuple[int, list[TargetFacts]]]:
    """The targets that were looked at, the oldest first."""
    for losses in context.targets:
        if losses:
            yield losses[0].step, list(losses)


def _is_shifted(one: TargetFacts, limit: float) -> bool:
    if one.loss not in REGRESSIONS or one.numel < 8 or not one.std > 1e-6 * abs(one.mean):
        return False
    away = one.mean if one.prediction_mean is None else one.mean - one.prediction_mean
    return abs(one.mean) > limit * one.std and abs(away) > limit * one.std and abs(away) > limit


@rule("GL512", "target-leak", certainty="scale-free", severity="info", after=5)
def target_leak(context: Context) -> Iterator[Evidence]:
    """One number of the input tells the target.

    **What it sees.** Over the batch, a number of the input whose correlation with a number of the target is above
    0.9995, at every look.

    **Why it hurts.** The model learns to pass it on. Where it is not there later, as with everything that is known only
    together with the target, the model is worth nothing.

    **What to do.** Look at where that input comes from, and leave it out unless it is known when predictions are made.

    **What looks like it and is healthy.** Autoencoders, whose target is their input, and forecasts of what hardly
    changes. So it is no more than a note.

    **How to silence it.** `--ignore GL512`.
    """
    leaks = [max((one.leak for one in losses if one.leak is not None), default=0.0) for _, losses in _by_step(context)]
    if len(leaks) < 3:
        raise Abstain("too few batches were looked at with a target of numbers")
    if min(leaks) > context.limit(LEAK):
        yield Evidence(
            message=f"one number of the input has a correlation of {min(leaks):.4f} or more with the target in each of "
            f"{len(leaks)} batches.",
            numbers={"correlation": float(min(leaks))},
            remedy="See whether that input is known when predictions are made; if it is not, leave it out.",
        )


LEAK = 0.9995


@rule("GL513", "embedding-rows", certainty="scale-free", severity="info", after=20, holds=4)
def embedding_rows(context: Context) -> Iterator[Evidence]:
    """A batch uses a few rows of a large embedding again and again.

    **What it sees.** The ids that an embedding is given: fewer than a twentieth as many different ones as there are
    rows, or as there are ids in the batch where that is less.

    **Why it hurts.** All that the ids should tell apart looks the same to the model: they were divided by their
    maximum, or looked up in a vocabulary that does not have them.

    **What to do.** Print some ids, and what they were made of.

    **What looks like it and is healthy.** Vocabularies with rare words. So it is no more than a note.

    **How to silence it.** `--ignore GL513`.
    """
    for one in context.ids:
        most = min(one.rows, one.num_ids)
        if one.rows >= FEWEST_ROWS and most >= FEWEST_ROWS and one.distinct < context.limit(ROWS) * most:
            yield Evidence(
                key=one.name,
                sites=(one.name,),
                message=f"{one.name} has {one.rows} rows, and the {one.num_ids} ids of a batch are {one.distinct} "
                f"different ones.",
                numbers={"rows": one.rows, "ids": one.num_ids, "distinct": one.distinct},
                remedy="Print some of the ids: they may have been scaled, or not found in the vocabulary.",
            )


ROWS = 0.05
FEWEST_ROWS = 20


@rule("GL701", "data-nonfinite", certainty="exact", severity="error", ends_after=1000, explains=("GL",))
def data_nonfinite(context: Context) -> Iterator[Evidence]:
    """A batch, or its target, holds NaN or infinity, while all weights are finite.

    **What it sees.** What the first layers are given, and the targets that loss functions have kept: at looks, and
    before the backward of the first loss that is not finite where that can be read without a wait (on the CPU).

    **Why it hurts.** One such number makes the loss NaN, and with the next step all weights, for good.

    **What to do.** Find the sample, and leave it out, or fill it in where the data is read.

    **What looks like it and is healthy.** Data that a model cleans before its first layer: it is looked at after that.
    A target that is not finite since weights are not, as that of a target network.

    **How to silence it.** `--ignore GL701`.
    """
    found = context.nonfinite
    if found is not None and (found.inputs or found.has_bad_target):
        if not found.weights:
            yield _bad_data(found.step, found.inputs, found.has_bad_target)
        return
    inputs = context.inputs
    if not len(inputs) or not _are_weights_finite(context.readings, int(inputs.steps[-1])):
        return
    bad = np.flatnonzero((inputs.last("is_data") > 0) & (inputs.last("nonfinite") > 0))
    if len(bad):
        yield _bad_data(int(inputs.steps[-1]), tuple(inputs.sites[place] for place in bad), False)


def _bad_data(step: int, sites: tuple[str, ...], has_bad_target: bool) -> Evidence:
    what = f"the data that {sites[0]} is given" if sites else "the target of the loss"
    also = ", and so does the target" if sites and has_bad_target else ""
    return Evidence(
        sites=sites,
        message=f"{what} holds NaN or infinity at step {step}{also}, while all weights are finite.",
        remedy="Find the sample and leave it out, or fill it in where the data is read "
        "(`assert x.isfinite().all()` in the data set names it).",
        first_step=step,
    )


def _are_weights_finite(readings: History, step: int) -> bool:
    """Whether all weights were finite before the update of a step that was looked at."""
    if not len(readings) or readings.steps[-1] != step or "weight.norm" not in readings:
        return False
    norms = readings["weight.norm"]  # NaN is also that of a parameter without a number, at every look
    return not np.isinf(norms[-1]).any() and np.isnan(norms[-1]).sum() <= np.isnan(norms).sum(1).min()
