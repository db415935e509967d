"""Families of models: attention, mixtures of experts, adversaries and critics, embeddings learned without labels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from gradlab.diagnose.context import Abstain, Context, LossGraph, LossSeries, ParameterFacts
from gradlab.diagnose.registry import Evidence, rule


@rule("GL601", "attention-saturated", certainty="scale-free", explains=("GL30", "GL40", "GL501", "GL502"))
def attention_saturated(context: Context) -> Iterator[Evidence]:
    """Attention sees one key only, from the first step on.

    **What it sees.** The result of a softmax that is multiplied with values, or the queries and keys of fused
    attention: in the first three steps the largest probability of a query, in the mean, is above 0.7.

    **Why it hurts.** Such a softmax passes on next to no gradient: which key it sees was decided by the random start,
    and queries and keys learn nothing.

    **What to do.** Divide the logits by the square root of the width of a head, start the weights of queries and keys
    smaller, and normalize what goes into them.

    **What looks like it and is healthy.** Attention that has learned to copy: it is not sharp at the start. Two or
    three keys, among which 0.7 is nothing special.

    **How to silence it.** `--ignore GL601`.
    """
    attentions = context.attentions
    if not len(attentions):
        raise Abstain("no attention is seen in the graph")
    early = attentions.steps <= EARLY
    if not early.any():
        return
    largest, keys = attentions["max_probability"][early], attentions["keys"][early][0]
    least = np.where(np.isnan(largest), 0.0, largest).min(0)
    sharp = np.flatnonzero((least > context.limit(SHARP)) & (keys >= FEWEST_KEYS))
    if len(sharp):
        first = int(sharp[0])
        yield Evidence(
            sites=tuple(attentions.sites[place] for place in sharp),
            message=f"the attention on {attentions.sites[first]} gives {least[first]:.0%} of its weight to one of "
            f"{int(keys[first])} keys before it has learned anything.",
            numbers={"max_probability": float(least[first]), "keys": float(keys[first])},
            remedy="Divide its logits by the square root of the head's width, and start queries and keys smaller.",
            first_step=int(attentions.steps[0]),
        )


SHARP = 0.7
"""At the start healthy: 0.08 to 0.30, with 8 and 16 keys; faulty: 0.96 to 1.00."""
EARLY = 2
FEWEST_KEYS = 4


@dataclass
class _Experts:
    """Modules alike in one list, and the matrices of each."""

    width: int
    """What a router among them would choose from."""
    places: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By module, the places of its matrices in the readings."""


@rule(
    "GL602",
    "idle-experts",
    certainty="scale-free",
    after=40,
    explains=("GL106", "GL302", "GL401", "GL402", "GL407", "GL502"),
)
def idle_experts(context: Context) -> Iterator[Evidence]:
    """Experts of a mixture are given nothing, while a router chooses among them.

    **What it sees.** Modules alike in one list, next to a layer with as many outputs (the router): a fifth of
    them or more have had no gradient at any of the last five looks or more, over forty steps at least, others have.

    **Why it hurts.** The router strengthens what it chooses; experts that are never chosen never learn, and the mixture
    is as good as the few that are.

    **What to do.** Add the usual loss of load balance, noise on the router's logits, or a capacity for each expert.

    **What looks like it and is healthy.** Heads or adapters of tasks, of which a step uses one: nothing routes among
    them. Experts that some batches do not need. One idle expert alone is no more than a note.

    **How to silence it.** `--ignore GL602`.
    """
    readings = context.readings
    gradients = readings["weight_grad.norm"]
    steps = readings.steps
    for group, experts in _mixtures(context).items():
        quiet = {}
        for name, places in experts.places.items():
            seen = np.nan_to_num(gradients[:, places], nan=0.0).max(1)
            active = np.flatnonzero(seen > 0)
            since = int(active[-1]) + 1 if len(active) else 0
            quiet[name] = since
        last = len(steps) - 1
        idle = [
            name
            for name, since in quiet.items()
            if last - since >= LOOKS_IDLE and steps[last] - steps[since] >= STEPS_IDLE
        ]
        if len(idle) < len(quiet) and len(idle) >= context.limit(IDLE) * len(quiet):
            yield Evidence(
                key=group,
                sites=tuple(idle),
                message=f"{len(idle)} of the {len(quiet)} experts in {group} have had no gradient since step "
                f"{int(steps[max(quiet[name] for name in idle)])}: the router sends everything to the others.",
                numbers={"idle": float(len(idle)), "experts": float(len(quiet))},
                remedy="Add a loss of load balance, noise on the router's logits, or a capacity for each expert.",
                first_step=int(steps[min(quiet[name] for name in idle)]),
                severity=None if len(idle) > 1 else "info",
            )


IDLE = 0.2
"""Share of the experts. Healthy: 0 or 1 of 4, so that one alone is no more than a note; faulty: 2 to 4 of 8."""
LOOKS_IDLE, STEPS_IDLE = 4, 40


def _mixtures(context: Context) -> Mapping[str, _Experts]:
    """Lists of modules alike that have a router beside them, by the name of the list."""
    facts: dict[str, ParameterFacts] = {one.name: one for one in context.parameters}
    lists: dict[str, _Experts] = {}
    shapes: dict[str, dict[str, set[tuple[str, tuple[int, ...]]]]] = defaultdict(lambda: defaultdict(set))
    for place, name in enumerate(context.readings.sites):
        one = facts.get(name)
        found = re.match(r"(.+?)\.(\d+)\.(.+)$", name)
        if one is None or found is None or not one.is_matrix or not one.requires_grad:
            continue
        group, module = found[1], f"{found[1]}.{found[2]}"
        lists.setdefault(group, _Experts(width=0)).places[module].append(place)
        shapes[group][module].add((found[3], one.shape))
    mixtures = {}
    for group, experts in lists.items():
        alike = len({frozenset(one) for one in shapes[group].values()}) == 1
        count, parent = len(experts.places), group.rpartition(".")[0]
        if count >= FEWEST_EXPERTS and alike and _has_router(context.parameters, parent, group, count):
            experts.width = count
            mixtures[group] = experts
    return mixtures


FEWEST_EXPERTS = 3


def _has_router(parameters: Iterable[ParameterFacts], parent: str, group: str, count: int) -> bool:
    """Whether beside a list there is a matrix that gives a number for each of its modules."""
    for one in parameters:
        is_beside = one.name.startswith(f"{parent}." if parent else "") and not one.name.startswith(f"{group}.")
        if is_beside and len(one.shape) == 2 and count in one.shape and one.name.count(".") <= group.count(".") + 2:
            return True
    return False


@rule("GL603", "discriminator-wins", certainty="scale-free", after=60, explains=("GL302", "GL402", "GL501", "GL706"))
def discriminator_wins(context: Context) -> Iterator[Evidence]:
    """A discriminator tells real from generated without error, and the generator learns nothing from it any more.

    **What it sees.** Two losses: one with a term for real and one for generated samples, that does not reach the
    generator; one that reaches the generator through the discriminator. In forty of the last fifty backwards the first
    was below a fifth of what it was at the start, while the second has risen threefold; or below a twentieth.

    **Why it hurts.** Where the discriminator is sure everywhere, its slope says no more how to do better.

    **What to do.** Lower the discriminator's learning rate, step it less often, regularize it (spectral norm, gradient
    penalty, noise on its inputs), or raise the generator's rate.

    **What looks like it and is healthy.** The first steps, before the generator has begun to learn.

    **How to silence it.** `--ignore GL603`.
    """
    for discriminator, generator in _adversaries(context):
        values, others = _values_of(context, discriminator), _values_of(context, generator)
        if (
            _count(discriminator, *_BOUNDED) < 2
            or values is None
            or others is None
            or min(len(values), len(others)) < 60
        ):
            continue
        start, late = float(np.median(values[:3])), values[-50:]
        rise = float(np.median(others[-50:]) / max(abs(np.median(others[:3])), 1e-12))
        limit = context.limit(WON) if rise > RISE else LOST
        if start > 0 and (late < limit * start).mean() >= 0.8:
            yield Evidence(
                message=f"the loss of the discriminator is down to {np.median(late):.2g} from {start:.2g}, that of the "
                f"generator {rise:.2g} times what it was: it tells real from generated without error.",
                numbers={"loss": float(np.median(late)), "start": start, "rise": rise},
                remedy="Slow the discriminator down (a lower learning rate, fewer steps) or regularize it (spectral "
                "norm, gradient penalty, noise on its inputs).",
            )


WON, RISE, LOST = 0.2, 3.0, 0.05
"""Shares of the discriminator's loss at the start; the first where the generator's has risen so many times.
Healthy: 0.78 or more, and 1.4 at most; faulty: 0.004 to 0.15, and 4 to 10."""
_BOUNDED = ("BinaryCrossEntropyWithLogits", "BinaryCrossEntropy", "Softplus", "LogSigmoid", "LogSigmoidForward")
_LOSSES = (*_BOUNDED, "MseLoss", "NllLoss", "SmoothL1Loss", "HuberLoss", "Relu", "ClampMin", "Clamp", "Pow")


@rule("GL604", "critic-unbounded", certainty="own history", after=60)
def critic_unbounded(context: Context) -> Iterator[Evidence]:
    """A critic whose loss has no least value, and nothing that bounds its slope.

    **What it sees.** Two losses, one of which reaches the other's parameters and more (critic and generator). That of
    the critic is a difference of means of outputs, without a penalty, and is ten times as far below zero as it was in
    its first twenty backwards, and falling.

    **Why it hurts.** The critic makes the difference as large as it likes by larger weights; the generator's gradients
    grow with it.

    **What to do.** Add a gradient penalty, clip the critic's weights after each step, or use spectral norm.

    **What looks like it and is healthy.** Critics with clipped weights: their loss stays where it is.

    **How to silence it.** `--ignore GL604`.
    """
    for critic, _ in _adversaries(context):
        values = _values_of(context, critic)
        if values is None or len(values) < 60 or _count(critic, "Mean") < 2:
            continue
        if _count(critic, *_LOSSES, "LinalgVectorNorm", "Norm") - _count_hidden(critic) > 0:
            continue
        early, before, late = np.abs(values[:20]).max(), np.median(values[-40:-20]), np.median(values[-20:])
        if late < 0 and late < before and -late > context.limit(GROWTH) * early:
            yield Evidence(
                message=f"the loss of the critic has fallen to {late:.3g} from at most {early:.2g} either way in its "
                f"first 20 backwards, and nothing bounds it.",
                numbers={"loss": float(late), "early": float(early)},
                remedy="Add a gradient penalty, clip the critic's weights after each step, or use spectral norm.",
            )


GROWTH = 10.0


def _adversaries(context: Context) -> Iterator[tuple[LossGraph, LossGraph]]:
    """Pairs of losses of which the second reaches all parameters of the first, and others."""
    graphs = [one for one in context.graphs if one.reached and one.is_whole and not one.is_opaque]
    for one in graphs:
        for other in graphs:
            if one.reached < other.reached:
                yield one, other
                break


def _count(graph: LossGraph, *names: str) -> int:
    return sum(graph.functions.get(name, 0) for name in names)


def _count_hidden(graph: LossGraph) -> int:
    """How many of its functions are activations: those between layers cannot be told from those of the loss by name."""
    layers = _count(graph, "Addmm", "Mm", "Convolution")
    return _count(graph, "Relu") if _count(graph, "Relu") <= layers else 0


def _values_of(context: Context, graph: LossGraph) -> np.ndarray | None:
    """The values of a loss, where its series can be told from those of others."""
    series: list[LossSeries] = [one for one in context.losses if one.root == graph.root]
    if len(series) != 1:
        return None
    values = np.asarray(series[0].values, np.float64)
    return values if np.isfinite(values).all() else None


@rule(
    "GL605", "representation-collapse", certainty="scale-free", after=20, holds=3, explains=("GL302", "GL402", "GL501")
)
def representation_collapse(context: Context) -> Iterator[Evidence]:
    """Embeddings that a loss without labels has made the same for all samples.

    **What it sees.** Vectors whose length the loss divides by, as a cosine does, in a graph without a loss function
    that has a target: over the batch their directions spread (1 where they have nothing in common) by less than 0.6 of
    what they did at the start, and less than 0.5.

    **Why it hurts.** A loss that only draws views together is best where everything is the same: it says that all is
    well, and the embedding tells nothing.

    **What to do.** Stop the gradient of one side and put a predictor on the other, or add negatives, or a term for the
    variance of each number.

    **What looks like it and is healthy.** The first steps of contrastive learning, at 0.12 to 0.3: it rises soon.

    **How to silence it.** `--ignore GL605`.
    """
    embeddings = context.embeddings
    is_unlabelled = any(
        graph.functions.get("LinalgVectorNorm", 0) > 1 and not _count(graph, "NllLoss", "MseLoss", *_BOUNDED)
        for graph in context.graphs
    )
    if len(embeddings) > 2 and is_unlabelled:
        spread = embeddings["spread"]
        first, last = spread[0], spread[-1]
        limit = context.limit(SPREAD)
        small = np.flatnonzero((last < 0.1) & (last <= first) | (last < limit * first) & (last < 0.5))
        if len(small):
            place = int(small[0])
            yield Evidence(
                sites=tuple(embeddings.sites[one] for one in small),
                message=f"the embeddings after {embeddings.sites[place]} become alike for all samples: their "
                f"directions spread by {last[place]:.2g} over the batch, by {first[place]:.2g} at the start.",
                numbers={"spread": float(last[place]), "start": float(first[place])},
                remedy="Stop the gradient of one side and put a predictor on the other, or add negatives, or a term "
                "for the variance.",
            )


SPREAD = 0.6
"""Of the spread at the start. Healthy (SimSiam, contrastive, triplet): 0.94 or more; faulty: down to 0.39 by 200."""
