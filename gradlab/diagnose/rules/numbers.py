"""The first non-finite number of a step, from the flags that are free: a norm is finite only if its tensor is.

A step runs its forward in site order, then its backward against it. The site that went non-finite first in that order
made the number (or what lies between it and the finite site before it did); all the others pass it on. An infinity that
reached neither the end of the forward nor a gradient, such as the -inf of an attention mask, is no alarm.

A NaN norm is a NaN in the tensor. An infinite norm is an infinity, or numbers whose squares overflow float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradlab.diagnose.context import Context, NonfiniteFacts
from gradlab.diagnose.registry import Evidence, rule
from gradlab.frame import Frame, Series, is_absent

_REMEDY = (
    "Lower the learning rate, clip gradients, or look for a division or logarithm of zero there; "
    "watch(..., nonfinite=NonFinite(skip=True)) names the op and the line before the weights are spoilt."
)
_VALUES, _GRADIENTS, _WEIGHTS = "output.norm", "output_grad.norm", "weight_grad.norm"


_FOLLOWS = ("GL1", "GL2", "GL3", "GL4", "GL5", "GL6", "GL703", "GL704", "GL705", "GL706", "GL8", "GL9")
"""All but GL701: data that is not finite is the cause, never the result."""


@rule("GL702", "nonfinite", certainty="exact", severity="error", clock="both", ends_after=20, explains=_FOLLOWS)
def nonfinite(context: Context) -> Iterator[Evidence]:
    """A number of the forward or the backward is not finite, and has got into gradients or into the output.

    **What it sees.** The norms of what the taps watch: a norm is finite only if its tensor is. The first site in the
    order of the computation made the number, or what lies between it and the finite site before it did; all the others
    pass it on. Without taps: which weights, and which layers' inputs, are not finite just before the backward of the
    first loss that is not.

    **Why it hurts.** One NaN in a gradient makes every weight that it moves NaN, for good.

    **What to do.** Lower the learning rate, clip gradients, or look for a division or logarithm of zero there.
    `watch(..., nonfinite=NonFinite(skip=True))` names the op and the line before the weights are spoilt.

    **What looks like it and is healthy.** The -inf of an attention mask, which reaches neither the end of the forward
    nor a gradient: no finding. Overflows that a GradScaler skips are told as GL704.
    """
    if context.nonfinite is not None:
        yield _before_backward(context.nonfinite)
        return
    finding = None
    for frame in reversed(context.frames):
        earlier = first(frame)
        if earlier is None:
            break
        finding = earlier
    if finding is not None:
        yield finding


def _before_backward(found: NonfiniteFacts) -> Evidence:
    """What the first loss that is not finite tells, by the weights and the inputs of layers at that time."""
    count = f"{len(found.weights)} of {found.num_weights} weights are not finite"
    sites: tuple[str, ...] = ()
    if found.weights and found.step == 0:
        sites = found.weights[:1]
        message = f"{count} before the first step, {found.weights[0]} the first of them."
    elif found.weights and len(found.weights) < found.num_weights:
        sites = (*found.suspects, found.weights[-1])
        message = (
            f"the gradient of the step before step {found.step} was not finite: {count}, {found.weights[-1]} the last "
            f"of them, while those after it are."
        )
    elif found.weights:
        message = f"the gradient of the step before step {found.step} was not finite: {count}."
    elif found.layer:
        sites = (*found.suspects, found.layer)
        message = f"what {found.layer} is given is not finite at step {found.step}, while all weights are."
    else:
        message = f"the loss is not finite at step {found.step}, while all weights and all inputs of layers are."
    return Evidence(sites=sites, message=message, remedy=_REMEDY, first_step=max(found.step - bool(found.weights), 0))


def first(frame: Frame) -> Evidence | None:
    """What there is to say of a frame's first non-finite site, or None where nothing bad came of any."""
    bad = {metric: _bad_sites(frame.get(metric)) for metric in (_VALUES, _GRADIENTS, _WEIGHTS)}
    if not _did_harm(frame, bad):
        return None
    if len(bad[_VALUES]):
        return _forward(frame, bad)
    return _backward(frame, bad)


def _bad_sites(series: Series | None) -> np.ndarray:
    """The places of values that were seen and are not finite."""
    if series is None or np.isfinite(series.array).all():
        return np.empty(0, np.int64)
    bad = np.flatnonzero(~np.isfinite(series.array))
    return bad[~is_absent(series.array[bad])]


def _did_harm(frame: Frame, bad: dict[str, np.ndarray]) -> bool:
    """Whether it got into the weights' gradients, or, where those are not watched, through to the last sites seen."""
    if len(bad[_WEIGHTS]):
        return True
    if _WEIGHTS not in frame and len(bad[_GRADIENTS]):
        return True
    return bool(len(bad[_VALUES])) and bad[_VALUES][-1] == _last_seen(frame[_VALUES])


def _last_seen(series: Series) -> int:
    seen = np.flatnonzero(~is_absent(series.array))
    return int(seen[-1]) if len(seen) else -1


def _forward(frame: Frame, bad: dict[str, np.ndarray]) -> Evidence:
    series, place = frame[_VALUES], int(bad[_VALUES][0])
    site = series.schema.sites[place]
    before = [n for n in range(place) if not is_absent(series.array[n : n + 1])[0]]
    finite = (
        f"; {series.schema.sites[before[-1]]} before it is finite" if before else ", the first site that is watched"
    )
    message = f"the output of {site} is not finite at step {frame.step}{finite}{_passed_on(bad)}."
    return _finding(frame, site, message, {_VALUES: series[site]}, bad)


def _backward(frame: Frame, bad: dict[str, np.ndarray]) -> Evidence:
    metric = _GRADIENTS if len(bad[_GRADIENTS]) else _WEIGHTS
    series, place = frame[metric], int(bad[metric][-1])
    site = series.schema.sites[place]
    what = "the gradient" if metric == _GRADIENTS else "the weight gradient"
    after = [n for n in range(place + 1, len(series)) if not is_absent(series.array[n : n + 1])[0]]
    where = f"; that of {series.schema.sites[after[0]]}, nearer the loss, is finite" if after else ", nearest the loss"
    values = " All values of the forward are finite." if _VALUES in frame else ""
    message = f"{what} of {site} {_is(series[site])} at step {frame.step}{where}{_passed_on(bad)}.{values}"
    return _finding(frame, site, message, {metric: series[site]}, bad)


def _is(norm: float) -> str:
    return "holds NaN" if math.isnan(norm) else "is infinite, or beyond 1.8e19,"


def _passed_on(bad: dict[str, np.ndarray]) -> str:
    names = {_VALUES: "outputs", _GRADIENTS: "gradients", _WEIGHTS: "weight gradients"}
    counts = [f"{len(sites)} {names[metric]}" for metric, sites in bad.items() if len(sites)]
    return f" ({', '.join(counts)} are not)" if sum(map(len, bad.values())) > 1 else ""


def _finding(frame: Frame, site: str, message: str, evidence: dict[str, float], bad: dict[str, np.ndarray]) -> Evidence:
    return Evidence(
        sites=(site,),
        message=message,
        numbers=evidence | {"sites": float(sum(map(len, bad.values())))},
        remedy=_REMEDY,
        first_step=frame.step,
    )
