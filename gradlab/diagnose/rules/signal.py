"""The signal on its way through the layers and its gradient on the way back: what shrinks, grows, or is zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gradlab.diagnose.context import Abstain, Context
from gradlab.diagnose.registry import Evidence, rule
from gradlab.frame import Frame

ZERO_FRAMES = 3
"""In so many logged steps in a row a gradient must be exactly zero before there is a finding."""
_LOOKS = 6
"""In so many looks a signal must be lost."""
_HOPS = 3
"""Growth from layer to layer is told of so many layers or more."""
_METRICS = ("output_grad.norm", "weight_grad.norm")


# GL402. What a layer's output gets as gradient, by what that of the last layer gets, as a geometric mean over the first
# 20 steps or more: faulty 1e-11 to 2e-6, healthy from 1e-3 on; deep nets of default init, which learn late, from 2e-5.
@rule("GL402", "vanishing-gradient", certainty="scale-free", explains=("GL302", "GL407", "GL501", "GL502"))
def vanishing_gradient(context: Context) -> Iterator[Evidence]:
    """The gradient is lost on its way from the loss to the first layers.

    **What it sees.** The gradient that arrives at the output of each layer, estimated from that of its weight and from
    its input: over 20 steps or more, that of an early layer is less than a hundred-thousandth of the last one's, as a
    geometric mean.

    **Why it hurts.** Nothing tells the first layers what to do, and what they make of the input is lost in the same
    way on its way forward: the output hardly depends on the input.

    **What to do.** Scale the init to the layer's width and activation (Xavier for tanh, He for ReLU), and put norms or
    residual sums between the layers. Sigmoids in a row lose at least three quarters of the gradient each.

    **What looks like it and is healthy.** A head or residual branches that start at zero, for a few steps; embeddings,
    of which a batch uses some rows: not looked at. Weights whose gradient is exactly zero are told as GL401 or GL403.
    """
    if any(graph.softmax_of_one for graph in context.graphs):
        return  # GL501: there is no gradient to be lost
    arriving, sites, steps = _arriving(context)
    if len(arriving) < _LOOKS or len(sites) < _HOPS:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        share = arriving / arriving[:, -1:]
    share[~np.isfinite(share) | (share == 0)] = np.nan
    known = (~np.isnan(share)).sum(0) >= _LOOKS
    middle = np.full(len(sites), np.nan)
    middle[known] = np.exp(np.nanmean(np.log(share[-20:, known]), axis=0))
    lost = np.flatnonzero(middle < context.limit(1e-5))
    if not len(lost):
        return
    place = int(lost[np.argmin(middle[lost])])
    first, last = sites[place].removesuffix(".weight"), sites[-1].removesuffix(".weight")
    yield Evidence(
        sites=tuple(sites[one] for one in sorted(lost, key=lambda one: middle[one])),
        message=f"the gradient shrinks {1 / middle[place]:.0e} times from {last} back to {first}: its outputs get "
        f"{middle[place]:.1e} of what the last layer's get ({len(lost)} of {len(sites)} layers get as little).",
        numbers={"share of the gradient": float(middle[place]), "layers": float(len(lost))},
        remedy="Scale the init to width and activation (Xavier for tanh, He for ReLU), or put norms or residual sums "
        "between the layers.",
        first_step=int(steps[0]),
    )


def _arriving(context: Context) -> tuple[np.ndarray, list[str], np.ndarray]:
    """[looks, layers]: about what gradient the outputs of layers get, in the order of the forward; sites; steps.

    The gradient of a weight is the product of its output's gradient and its input.
    """
    gradients, sizes = context.readings["weight_grad.norm"], context.inputs["rms"]
    trained = {context.readings.sites[place]: place for place in context.matrices}
    order = [(place, site) for place, site in enumerate(context.inputs.sites) if site in trained]
    steps, ours, theirs = np.intersect1d(context.readings.steps, context.inputs.steps, return_indices=True)
    if not order:
        raise Abstain("no input of a layer is known")
    numel = {one.name: one.numel for one in context.parameters}
    columns = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for place, site in order:
            rms = gradients[ours, trained[site]] / np.sqrt(numel[site])
            columns.append(np.where(sizes[theirs, place] > 0, rms / sizes[theirs, place], np.nan))
    return np.stack(columns, 1), [site for _, site in order], steps


# GL405. Growth of the rms over three layers or more, each larger than the one before, at the first step: faulty 3e4 to
# 3e5; healthy none (between any two layers up to 6).
@rule(
    "GL405",
    "exploding-signal",
    certainty="scale-free",
    severity="error",
    explains=("GL301", "GL304", "GL401", "GL402", "GL501", "GL502", "GL511", "GL7"),
)
def exploding_signal(context: Context) -> Iterator[Evidence]:
    """The signal grows from layer to layer, from the init on.

    **What it sees.** The inputs of the layers, and the output of the model, at the first step: their root mean square
    grows a hundredfold over three layers or more, each time by some; a thousandfold is an error. The same for one layer
    that a forward calls again and again, as in a recurrent network.

    **Why it hurts.** The first losses are astronomic, and so are their gradients: the optimizer spends its steps on
    undoing the init, or makes NaN of the weights.

    **What to do.** Divide the standard deviation of the init by the square root of the fan-in (Xavier, He), or put
    norms between the layers.

    **What looks like it and is healthy.** Data in large units at the first layer: GL510. Sums over many elements in one
    place. Norms between the layers hide a large init, and make it harmless.
    """
    if not len(context.inputs) or context.inputs.steps[0] > 2:
        return
    rms = np.append(context.inputs["rms"][0], _output(context))
    begin, end, growth = _growth(rms)
    sites, limit = context.inputs.sites, context.limit(1e2)
    if growth > limit:
        hops = end - begin
        where = f"that of {_module(sites[end])}" if end < len(sites) else "the output of the model"
        yield Evidence(
            sites=tuple(sites[begin:end]),
            message=f"the signal grows {growth:.1e} times over {hops} layers at the first step, about "
            f"{growth ** (1 / hops):.2g} times a layer: the input of {_module(sites[begin])} has an rms of "
            f"{rms[begin]:.2g}, {where} one of {rms[end]:.2g}.",
            numbers={"growth": growth, "layers": float(hops)},
            remedy="Divide the standard deviation of the init by the square root of the fan-in (Xavier, He), or put "
            "norms between the layers.",
            severity="error" if growth > 1e3 else "warning",
            first_step=0,
        )
        return
    yield from _growth_over_calls(context, 10 * limit)
    yield from _growth_backwards(context)


def _growth_backwards(context: Context) -> Iterator[Evidence]:
    """Gradients that grow on their way back, where the signal is kept from growing by saturation or norms."""
    arriving, sites, _ = _arriving(context)
    if len(arriving) < 2:
        return
    (begin, end, growth), (_, _, again) = _growth(arriving[0, ::-1]), _growth(arriving[1, ::-1])
    if min(growth, again) > 1e3:
        first, last = sites[len(sites) - 1 - end], sites[len(sites) - 1 - begin]
        yield Evidence(
            sites=(first,),
            message=f"the gradient grows {growth:.1e} times over {end - begin} layers on its way back at the first "
            f"step, from {_module(last)} to {_module(first)}.",
            numbers={"growth": growth, "layers": float(end - begin)},
            remedy="Divide the standard deviation of the init by the square root of the fan-in (Xavier, He).",
            severity="warning",
            first_step=0,
        )


def _output(context: Context) -> float:
    """The rms of the first predictions; NaN where it is not known."""
    first = context.targets[0][0] if context.targets and context.targets[0] else None
    if first is None or first.prediction_mean is None or first.prediction_std is None:
        return math.nan
    return math.hypot(first.prediction_mean, first.prediction_std)


def _growth_over_calls(context: Context, limit: float) -> Iterator[Evidence]:
    rms, last = context.inputs["rms"][0], context.inputs["rms@last"][0]
    # A state begins at zero: it is compared with what goes into the model.
    is_data = context.inputs["is_data"][0] == 1 if "is_data" in context.inputs else np.zeros(len(rms), bool)
    usual = rms[is_data & (rms > 0)].max(initial=0.0) or np.nan
    growth = last / np.maximum(rms, usual)
    if not np.isnan(growth).all() and np.nanmax(growth) > limit:
        place = int(np.nanargmax(growth))
        module = _module(context.inputs.sites[place])
        yield Evidence(
            sites=(context.inputs.sites[place],),
            message=f"the input of {module} grows {growth[place]:.1e} times over its calls in one forward at the first "
            f"step, from an rms of {rms[place]:.2g} to {last[place]:.2g}.",
            numbers={"growth": float(growth[place])},
            remedy="Start the recurrent weight as an orthogonal matrix, or with a norm or a gate around it.",
            first_step=0,
        )


def _growth(rms: np.ndarray) -> tuple[int, int, float]:
    """The two layers between which the rms grows most, three or more apart and from layer to layer, and how much."""
    best, begin = (0, 0, 1.0), 0
    for end in range(1, len(rms)):
        if not rms[end] > rms[end - 1] > 0:
            begin = end
        elif end - begin >= _HOPS and rms[end] / rms[begin] > best[2]:
            best = (begin, end, float(rms[end] / rms[begin]))
    return best


def _module(site: str) -> str:
    return site.removesuffix(".weight")


# GL406. Share of gradients below 2**-14: faulty .97 to 1.0, healthy up to .054.
@rule("GL406", "fp16-underflow", certainty="scale-free", holds=2, explains=("GL302", "GL402", "GL407", "GL502"))
def fp16_underflow(context: Context) -> Iterator[Evidence]:
    """Gradients in float16 are too small for it: they have lost their digits, or are zero.

    **What it sees.** Of weights that are used in float16: the share of gradients below 6.1e-5, the smallest number that
    float16 holds with all its digits, as a median over the weights. A scaled loss lifts them.

    **Why it hurts.** What is below 6e-8 is zero in float16, and what is below 6.1e-5 has one to ten bits left.

    **What to do.** Scale the loss with `torch.amp.GradScaler`, or use bfloat16, which has the range of float32.

    **What looks like it and is healthy.** bfloat16: not looked at. Zeros of dead units: a part of the gradients only.
    """
    tiny = context.readings.last("weight_grad.tiny")
    known = [place for place in context.matrices if not np.isnan(tiny[place])]
    if not known:
        return
    middle = float(np.median(tiny[known]))
    if middle > context.limit(0.5):
        order = sorted(known, key=lambda place: -tiny[place])
        yield Evidence(
            sites=tuple(context.readings.sites[place] for place in order if tiny[place] > 0.5),
            message=f"{middle:.0%} of the float16 gradients are below 6.1e-5, where float16 loses digits, or zero "
            f"(median of {len(known)} weights).",
            numbers={"share": middle, "weights": float(len(known))},
            remedy="Scale the loss with torch.amp.GradScaler, or use bfloat16.",
        )


@rule("GL407", "zero-gradient", certainty="exact", clock="frame", ends_after=20)
def zero_gradient(context: Context) -> Iterator[Evidence]:
    """A gradient that arrives is exactly zero, step after step.

    **What it sees.** The norms of gradients that the taps watch: exactly 0 in three logged steps in a row. A bias is
    told only with the weight beside it: its gradient may cancel, as that of the last bias of a critic does in
    mean(fake) - mean(real).

    **Why it hurts.** What has no gradient does not learn.

    **What to do.** Look for a saturated or dead activation after it, or a path to the loss that is cut off.

    **What looks like it and is healthy.** Gradients of 1e-30 are not zero, and no finding.
    """
    frames = [frame for frame in context.frames if any(metric in frame for metric in _METRICS)][-ZERO_FRAMES:]
    if len(frames) < ZERO_FRAMES:
        raise Abstain("no gradient is watched often enough yet")
    sites = [site for metric in _METRICS for site in _zero_sites(frames, metric)]
    told = [site for site in sites if not _may_cancel(site, sites)]
    if told:
        many = f" ({len(told)} sites are)" if len(told) > 1 else ""
        yield Evidence(
            sites=tuple(told),
            message=f"{told[0]} has had a gradient of exactly zero in {ZERO_FRAMES} logged steps up to step "
            f"{frames[-1].step}{many}.",
            numbers={"sites": float(len(told))},
            remedy="Look for a saturated or dead activation after it, or a path to the loss that is cut off.",
        )


def _zero_sites(frames: Sequence[Frame], metric: str) -> list[str]:
    """The sites whose gradient is zero in all of the frames."""
    if not all(metric in frame for frame in frames):
        return []
    schema = frames[-1][metric].schema
    if any(frame[metric].schema.sites != schema.sites for frame in frames):
        return []
    zero = np.logical_and.reduce([frame[metric].array == 0.0 for frame in frames])
    return [schema.sites[place] for place in np.flatnonzero(zero)]


def _may_cancel(site: str, silent: Sequence[str]) -> bool:
    """Whether a site is a bias whose weight has a gradient."""
    module, _, own = site.rpartition(".")
    return own == "bias" and f"{module}.weight" not in silent
