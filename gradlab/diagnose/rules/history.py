"""The loss against its own past: jumps that pass, and a loss that grows without end.

Both are symptoms of nearly everything. They say what is known of the step; they never say that it was the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlab.diagnose.context import Abstain, Context, LossSeries
from gradlab.diagnose.registry import Evidence, rule
from gradlab.frame import is_absent

DEVIATIONS = 6.0
DECADES = 1.0
PAST, FEWEST = 50, 20
"""A value is compared with so many before it, and with no fewer than these."""


@rule("GL705", "loss-spike", certainty="own history", severity="info", after=30, ends_after=1000)
def loss_spike(context: Context) -> Iterator[Evidence]:
    """The loss has jumped far out of its own past, twice within ten steps or more, and come back.

    **What it sees.** The logarithm of the loss against the fifty values before it: six robust standard deviations and a
    decade above their median, twice. It says the step, the first parameter in the order of the model whose gradient has
    left its past at that step too, and what was measured of the data.

    **Why it hurts.** A step that follows such a gradient may undo much of what was learned, and moments of Adam
    remember it for long.

    **What to do.** Clip gradients at a few times their usual norm, or skip such steps. A spike comes of the batch and
    of the weights: the same batch from another checkpoint often does nothing.

    **What looks like it and is healthy.** A change of the task or of the learning rate; a loss near zero, for which a
    decade is little. So it is no more than a note.

    **How to silence it.** `--ignore GL705`.
    """
    for number, series in enumerate(context.losses):
        spikes = _spikes(series)
        if len(spikes) < 2 or spikes[-1] >= len(series.values) - 5:
            continue
        first = int(spikes[0])
        before = float(np.median(series.values[max(0, first - PAST) : first]))
        step = int(series.steps[first])
        site, about = _first_to_leave(context, step)
        yield Evidence(
            key=str(number) if len(context.losses) > 1 else "",
            sites=(site,) if site else (),
            message=f"the loss was {series.values[first]:.3g} at step {step}, {before:.3g} in the median before"
            f"{about}{_data_at(context, step)}.",
            numbers={"loss": float(series.values[first]), "before": before, "times": float(len(spikes))},
            remedy="Clip gradients at a few times their usual norm, or skip such steps.",
            first_step=step,
        )


@rule("GL706", "diverging", certainty="own history", after=30, holds=2, explains=("GL705",))
def diverging(context: Context) -> Iterator[Evidence]:
    """The loss grows without end.

    **What it sees.** A positive loss the median of whose last twenty values is above thirty times that of its first
    ten, and above that of the twenty before; or one that was finite and is not any more. Where the loss has a target of
    numbers, the target's own size must not have grown as much.

    **Why it hurts.** Nothing is learned any more. Of a sweep's trial no more is to be expected: stop it.

    **What to do.** Look at the other findings first. Without any, lower the learning rate, warm it up, clip gradients.

    **What looks like it and is healthy.** Losses of bootstrapped values and of adversaries, which grow with what they
    are compared with: those without a target of numbers or below zero are left out where there are several losses.

    **How to silence it.** `--ignore GL706`.
    """
    if not context.losses:
        raise Abstain("no loss is read")
    for number, series in enumerate(context.losses):
        found = _nan_of(series) or _growth_of(context, series)
        if found is not None:
            step, message, numbers = found
            yield Evidence(
                key=str(number) if len(context.losses) > 1 else "",
                message=message,
                numbers=numbers,
                remedy="Stop this trial; lower the learning rate, warm it up, or clip gradients.",
                first_step=step,
            )


GROWN = 30.0
"""Healthy: 8 at most; a loss that runs away passes any limit soon."""


def _nan_of(series: LossSeries) -> tuple[int, str, dict[str, float]] | None:
    """Of a loss that is not finite any more: since which step."""
    values = np.asarray(series.values, np.float64)
    if len(values) < 3 or np.isfinite(values[-2:]).any() or not np.isfinite(values).any():
        return None
    last = int(np.flatnonzero(np.isfinite(values))[-1])
    step = int(series.steps[last + 1])
    return step, f"the loss is not finite since step {step}; it was {values[last]:.3g} before.", {"loss": values[last]}


def _growth_of(context: Context, series: LossSeries) -> tuple[int, str, dict[str, float]] | None:
    """Of a loss that has grown thirtyfold and still grows: since which step."""
    values = np.asarray(series.values, np.float64)
    values, steps = values[np.isfinite(values)], np.asarray(series.steps)[np.isfinite(values)]
    if len(values) < 50 or (values <= 0).any() or len(context.losses) > 1:
        return None
    start, before, late = np.median(values[:10]), np.median(values[-40:-20]), np.median(values[-20:])
    grown = late / start / _growth_of_target(context)
    if late <= before or grown < context.limit(GROWN):
        return None
    step = int(steps[np.flatnonzero(values > 10 * start)[0]])
    message = f"the loss grows: {late:.3g} in the last twenty steps, {start:.3g} in the first ten."
    return step, message, {"loss": float(late), "start": float(start)}


def _growth_of_target(context: Context) -> float:
    """By how much the mean square of a target of numbers has grown: a loss that has grown as much is none the worse."""
    sizes = [one.mean**2 + one.std**2 for losses in context.targets for one in losses[:1] if not one.is_difference]
    return max(1.0, sizes[-1] / sizes[0]) if len(sizes) > 1 and sizes[0] > 0 else 1.0


def _spikes(series: LossSeries) -> np.ndarray:
    """The places of values that are far above what came before; those that are so themselves are no past of others."""
    values = np.asarray(series.values, np.float64)
    positive = np.isfinite(values) & (values > 0)
    if positive.sum() < FEWEST + 2 or not positive.all():
        return np.empty(0, np.int64)
    logs, found = np.log10(values), []
    usual = list(logs[:FEWEST])
    for place in range(FEWEST, len(logs)):
        past = np.array(usual[-PAST:])
        middle = np.median(past)
        deviation = 1.4826 * np.median(np.abs(past - middle))
        if logs[place] > middle + max(DECADES, DEVIATIONS * deviation):
            found.append(place)
        else:
            usual.append(logs[place])
    return np.array(found, np.int64)


def _first_to_leave(context: Context, step: int) -> tuple[str, str]:
    """The first parameter in the order of the model whose gradient was far above its past at a step, if seen."""
    frames = [one for one in context.frames if one.step <= step and "weight_grad.norm" in one]
    if len(frames) < FEWEST or frames[-1].step != step:
        return "", ""
    schema = frames[-1]["weight_grad.norm"].schema
    rows = [
        one["weight_grad.norm"].array
        for one in frames[-PAST - 1 :]
        if one["weight_grad.norm"].schema.sites == schema.sites
    ]
    table = np.stack(rows).astype(np.float64)
    table[is_absent(np.stack(rows)) | ~(table > 0)] = np.nan
    logs = np.log10(table)
    for place, site in enumerate(schema.sites):
        past = logs[:-1, place][np.isfinite(logs[:-1, place])]
        if len(past) < FEWEST or not np.isfinite(logs[-1, place]):
            continue
        middle = np.median(past)
        deviation = 1.4826 * np.median(np.abs(past - middle))
        if logs[-1, place] > middle + max(DECADES, DEVIATIONS * deviation):
            times = 10 ** (logs[-1, place] - middle)
            return site, f"; the first gradient to leave its past was that of {site}, {times:.3g} times its median"
    return "", ""


def _data_at(context: Context, step: int) -> str:
    """What is known of the data at a step, where that was looked at."""
    inputs = context.inputs
    if "rms" not in inputs or step not in inputs.steps or "is_data" not in inputs:
        return ""
    place = int(np.flatnonzero(inputs.steps == step)[0])
    data = np.flatnonzero(inputs["is_data"][place] > 0)
    if not len(data) or len(inputs) < 3:
        return ""
    rms = inputs["rms"][:, data[0]]
    usual = float(np.median(np.delete(rms, place)))
    return f"; the data of that step has a root mean square of {rms[place]:.3g}, {usual:.3g} in the median of others"
