"""Units that do not learn: dead ones, layers of zeros, units that are all alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradlab.diagnose.context import Abstain, Context
from gradlab.diagnose.registry import Evidence, rule

_LOOKS, _MANY_LOOKS = 6, 10
"""In so many looks nearly all units of a layer must have had no gradient; in so many a part of them."""
_NEARLY_ALL = 0.95
_NEAR = 3
"""The layer that a unit's output goes into is among the next so many, in the order of the forward."""
_SETTLED = 5
"""From this step on a layer that waits for another one, as beside a head of zeros, has had its first gradient."""
_DEAD = ("GL302", "GL402", "GL407", "GL501", "GL502")


@dataclass(frozen=True)
class _Dead:
    """A layer with units that have had no gradient for some looks."""

    weight: str
    share: float
    since: int
    num_looks: int


# GL401. Share of rows without gradient in ten looks in a row: faulty .88 to 1.0, healthy up to .64 (Q-learning), .44
# (experts, a sparse encoder), .2 (deep ReLU nets).
@rule("GL401", "dead-units", certainty="scale-free", ends_after=10, explains=_DEAD)
def dead_units(context: Context) -> Iterator[Evidence]:
    """Units whose output is the same for every input, so that no gradient comes back through them.

    **What it sees.** Rows of a weight whose gradient has been exactly zero at each of the last six looks or more, and
    the next layer, which gets the same number from them whatever goes into the model. 95 % of a layer is an error,
    85 % at ten looks a warning.

    **Why it hurts.** A ReLU whose input is below zero for all data passes nothing on and no gradient back: its unit
    never comes back to life. What is before a dead layer does not learn either.

    **What to do.** Where units are dead from the first step on: look at the init, of biases as well. Where they die
    later: lower the learning rate, warm it up, clip gradients. LeakyReLU, GELU or a norm before the activation keep
    units alive.

    **What looks like it and is healthy.** Sparse activations, which are silent for one batch and not for the next.
    Embeddings and experts that a batch does not use, heads of tasks that it does not have, outputs that are not asked
    for: the layer after them is not silent.
    """
    limit = context.limit(0.85)
    found = sorted(_dead_layers(context, limit), key=lambda one: -one.share)
    if not found:
        return
    worst = found[0]
    module = _module(worst.weight)
    more = f" ({len(found)} layers have such units)" if len(found) > 1 else ""
    is_born = worst.since <= context.rows.steps[0]
    when = "since the first step" if is_born else f"since step {worst.since}"
    yield Evidence(
        sites=tuple(one.weight for one in found),
        message=f"{worst.share:.0%} of the units of {module} are dead: they have had no gradient at {worst.num_looks} "
        f"looks in a row, {when}, and their output is the same for every input{more}.",
        numbers={"share of units": worst.share, "looks": float(worst.num_looks), "layers": float(len(found))},
        remedy=f"Look at how {module} is initialised, its bias as well: no input lifts its units above zero. "
        "LeakyReLU or GELU keep units alive."
        if is_born
        else "Lower the learning rate, or warm it up: a step has thrown the units so far that no input reaches them. "
        "LeakyReLU or GELU keep units alive.",
        severity="error" if worst.share >= _NEARLY_ALL else "warning",
        first_step=worst.since,
    )


def _dead_layers(context: Context, limit: float) -> Iterator[_Dead]:
    """Layers with dead units, in the order of the forward."""
    if len(context.rows) < _LOOKS:
        raise Abstain("there have not been enough looks yet")
    if any(graph.softmax_of_one for graph in context.graphs):
        return  # GL501: nothing has a gradient
    silent, steps = context.rows["silent"], context.rows.steps
    sites = [context.readings.sites[place] for place in context.matrices]
    whole: set[str] = set()
    found = []
    for site in _in_forward_order(context, sites):
        one = _silent_units(site, silent[:, context.rows.sites.index(site)], steps, limit)
        if one is None:
            continue
        if one.share == 1.0:
            whole.add(site)
            if _bias_is_alive(context, site):
                continue  # its input is zero: the dead units are those before it
        found.append(one)
    told = [one for one in found if _is_passed_on(context, one, 1)]
    told = told or [one for one in found if _is_passed_on(context, one, _NEAR)][-1:]
    yield from told or [one for one in found if one.weight in whole and _is_dead_alone(context, one, sites, whole)]


def _silent_units(site: str, silent: np.ndarray, steps: np.ndarray, limit: float) -> _Dead | None:
    """What there is to say of one weight, [looks, rows]; None where fewer units than `limit` are silent."""
    silent = silent[:, ~np.isnan(silent).all(0)]
    known = ~np.isnan(silent).any(1) if silent.size else np.zeros(len(steps), bool)
    silent, steps = silent[known], steps[known]
    if len(silent) < _LOOKS or silent.shape[1] < 2:
        return None
    shares = np.minimum.accumulate(silent[::-1], axis=0)[::-1].mean(1)
    first = int(np.argmax(shares >= limit))
    if shares[-_LOOKS] < max(limit, _NEARLY_ALL) and (len(shares) < _MANY_LOOKS or shares[-_MANY_LOOKS] < limit):
        return None
    return _Dead(site, float(shares[first]), int(steps[first]), len(silent) - first)


def _is_passed_on(context: Context, one: _Dead, near: int) -> bool:
    """Whether the next layer, or one of the next ones, gets as many features that are the same everywhere."""
    if one.weight not in context.inputs.sites:
        return False
    place = context.inputs.sites.index(one.weight)
    constant = context.inputs.last("constant")[place + 1 : place + 1 + near]
    zeros = context.inputs.last("zeros")[place + 1 : place + 1 + near]
    return bool((np.fmax(constant, zeros) >= 0.8 * one.share).any())


def _is_dead_alone(context: Context, one: _Dead, sites: Sequence[str], silent: set[str]) -> bool:
    """Whether a layer whose gradient is zero as a whole is dead, where no layer after it tells.

    So it is beside a residual sum. It has been so from the first look on, and so are those with the same name but for
    numbers: one expert of several may have no work.
    """
    if one.since > context.rows.steps[0] or not _rest_learns(context, silent):
        return False
    alike = [site for site in sites if _pattern(site) == _pattern(one.weight)]
    return len(alike) > 1 and all(site in silent for site in alike)


def _rest_learns(context: Context, silent: set[str]) -> bool:
    """Whether any other matrix has a gradient."""
    norms = context.readings.last("weight_grad.norm")
    return any(norms[place] > 0 and context.readings.sites[place] not in silent for place in context.matrices)


def _bias_is_alive(context: Context, weight: str) -> bool:
    bias = re.sub(r"weight(?=[^.]*$)", "bias", weight)
    if bias == weight or bias not in context.readings.sites:
        return False
    norm = context.readings["weight_grad.norm"][-_LOOKS:, context.readings.sites.index(bias)]
    return bool((norm > 0).any())


def _pattern(site: str) -> str:
    return re.sub(r"\d+", "*", site)


def _module(site: str) -> str:
    """The module of a parameter; the parameter itself where its name says more."""
    return site.removesuffix(".weight")


def _in_forward_order(context: Context, sites: Sequence[str]) -> list[str]:
    """Sites in the order in which the forward uses them, those of which that is not known last."""
    order = {site: place for place, site in enumerate(context.inputs.sites)}
    return sorted(sites, key=lambda site: order.get(site, len(order)))


@rule(
    "GL403",
    "zero-init",
    certainty="exact",
    severity="error",
    explains=("GL401", "GL402", "GL404", "GL407", "GL501", "GL502", "GL302"),
)
def zero_init(context: Context) -> Iterator[Evidence]:
    """Layers that start at zero and stay there, as each waits for the other.

    **What it sees.** Weights that are exactly zero, and whose gradient is exactly zero, in all looks up to step 5: two
    layers that follow each other, or one whose output the next layer needs.

    **Why it hurts.** The gradient of a layer is a product with the weights after it and with the outputs before it:
    between two layers of zeros both are zero, so that neither ever moves, nor anything before them.

    **What to do.** Let one of them start at zero at most; give the others a random init.

    **What looks like it and is healthy.** One layer of zeros: a head, the last layer of a residual branch, the second
    matrix of LoRA. Its own gradient is not zero. Experts without work.
    """
    if context.step < _SETTLED:
        return
    norms, gradients = context.readings["weight.norm"], context.readings["weight_grad.norm"]
    sites = [context.readings.sites[place] for place in context.matrices]
    chain = _in_forward_order(context, sites)
    stuck = []
    for site in chain:
        place = context.readings.sites.index(site)
        known = gradients[:, place][~np.isnan(gradients[:, place])]
        own = norms[:, place][~np.isnan(norms[:, place])]
        if len(known) > 2 and len(own) and (known == 0).all() and (own == 0).all():
            stuck.append(site)
    follow = any(first in stuck and then in stuck for first, then in pairwise(chain))
    alike = [one for site in stuck for one in chain if _pattern(one) == _pattern(site)]
    alone = len(context.readings) >= _LOOKS and all(one in stuck and _is_all_zero(context, one) for one in alike)
    if stuck and (follow or alone):
        names = [_module(site) for site in stuck]
        yield Evidence(
            sites=tuple(stuck),
            message=f"{_listed(names)} started at zero and {'has' if len(names) == 1 else 'have'} stayed there: "
            f"weights and gradients are exactly zero after {context.step + 1} steps.",
            numbers={"layers": float(len(stuck)), "steps": float(context.step + 1)},
            remedy="Give all but the last of them a random init: a layer of zeros gives the one before it no gradient.",
            first_step=0,
        )


def _is_all_zero(context: Context, site: str) -> bool:
    """Whether the other parameters of its module are zero as well, so that it passes nothing on."""
    module, norms = site.rpartition(".")[0], context.readings["weight.norm"][-1]
    beside = [place for place, one in enumerate(context.readings.sites) if one.rpartition(".")[0] == module]
    return bool((norms[beside] == 0).all())


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) > 3:
        return f"{names[0]}, {names[1]} and {len(names) - 2} more layers"
    return f"{', '.join(names[:-1])} and {names[-1]}"


# GL404. Spread of rows by what the weights have moved: faulty 0 to 1e-6, healthy above 1.
@rule(
    "GL404",
    "symmetric-init",
    certainty="exact",
    explains=("GL302", "GL401", "GL402", "GL405", "GL407", "GL501", "GL502"),
)
def symmetric_init(context: Context) -> Iterator[Evidence]:
    """A layer whose units are all alike, and are moved alike.

    **What it sees.** The rows of a weight are identical when training begins, and still are, to a hundredth of what
    they have moved, after five steps with gradients.

    **Why it hurts.** Units that compute the same get the same gradient and stay the same for ever: a layer of 64 units
    has the power of one.

    **What to do.** Give the weights a random init.

    **What looks like it and is healthy.** A layer of zeros or ones whose rows part with the first step, as their
    gradients differ. Vectors: scales of norms, biases.
    """
    if context.step < _SETTLED:
        return
    spread, norm = context.readings["weight.equal_rows"], context.readings["weight.norm"]
    moved, gradients = context.readings["update.norm"], context.readings["weight_grad.norm"]
    sites = [context.readings.sites[place] for place in context.matrices]
    alike = []
    for site in _in_forward_order(context, sites):
        place = context.readings.sites.index(site)
        known = ~np.isnan(spread[:, place]) & ~np.isnan(moved[:, place])
        rows, step = spread[known, place], moved[known, place] / norm[known, place]
        if len(rows) < 3 or not (gradients[:, place] > 0).sum() > 2 or not rows[0] < 1e-6:
            continue
        if (rows[2:] <= 0.01 * np.cumsum(step)[1:-1]).all() and step.sum() > 0:
            alike.append(site)
    if alike:
        more = f" (and those of {len(alike) - 1} more layers)" if len(alike) > 1 else ""
        module = _module(alike[0])
        yield Evidence(
            sites=tuple(alike),
            message=f"all units of {module}{more} are the same: the rows of its weight started equal, get the same "
            f"gradient, and are still equal after {context.step + 1} steps.",
            numbers={"layers": float(len(alike)), "steps": float(context.step + 1)},
            remedy=f"Give {module} a random init, as torch does by itself.",
            first_step=0,
        )
