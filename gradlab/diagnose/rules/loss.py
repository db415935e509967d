"""The loss: what it applies itself, its sign, whether it has a way to the weights, and how often it comes to a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gradlab.diagnose.context import Abstain, Context, LossGraph, LossSeries, LossTerm
from gradlab.diagnose.registry import Evidence, rule

_SYMPTOMS = ("GL3", "GL4", "GL5", "GL6", "GL702", "GL703", "GL704", "GL705", "GL706")
"""A loss that is wrong, or none, shows as steps, signals, outputs and in the end numbers that look wrong."""

_SENTENCES = {
    ("LogSoftmax", "Softmax"): (
        "the outputs go through a softmax{place}, and then through the softmax that cross_entropy (or log_softmax) "
        "applies itself",
        "Give the loss the outputs from before the softmax.",
    ),
    ("LogSoftmax", "Sigmoid"): (
        "the outputs go through a sigmoid{place}, and then through the softmax that cross_entropy (or log_softmax) "
        "applies itself",
        "Give the loss the outputs from before the sigmoid.",
    ),
    ("NllLoss", "Softmax"): (
        "nll_loss is given probabilities of a softmax{place} where it expects their logarithms",
        "Use log_softmax in place of softmax, or cross_entropy on the outputs from before it.",
    ),
    ("NllLoss", "Sigmoid"): (
        "nll_loss is given the outputs of a sigmoid{place} where it expects logarithms of probabilities",
        "Use cross_entropy on the outputs from before the sigmoid.",
    ),
    ("BinaryCrossEntropyWithLogits", "Sigmoid"): (
        "the outputs go through a sigmoid{place}, and then through the sigmoid that binary_cross_entropy_with_logits "
        "applies itself",
        "Give the loss the outputs from before the sigmoid.",
    ),
    ("BinaryCrossEntropyWithLogits", "Softmax"): (
        "the outputs go through a softmax{place}, and then through the sigmoid that binary_cross_entropy_with_logits "
        "applies itself",
        "Give the loss the outputs from before the softmax.",
    ),
    ("BinaryCrossEntropy", "Sigmoid"): (
        "the outputs go through two sigmoids{place} on their way to binary_cross_entropy",
        "Take one of the sigmoids away.",
    ),
    ("Softmax", "Softmax"): (
        "the outputs go through two softmaxes{place} on their way to the loss",
        "Take one of the softmaxes away.",
    ),
}
_SENTENCES["NllLoss2D", "Softmax"] = _SENTENCES["NllLoss", "Softmax"]
_SENTENCES["NllLoss2D", "Sigmoid"] = _SENTENCES["NllLoss", "Sigmoid"]


@rule("GL201", "double-softmax", certainty="exact", explains=("GL302", "GL4", "GL5"))
def double_softmax(context: Context) -> Iterator[Evidence]:
    """A softmax or sigmoid before a loss function that applies its own.

    **What it sees.** The graph of the loss: a softmax whose result goes, through nothing but other shapes, bounds or a
    small number that is added, into log_softmax, nll_loss or a second softmax; a sigmoid that goes into
    binary_cross_entropy_with_logits, or a second one before binary_cross_entropy. Its place is the module that applies
    it, or that of the layer before it.

    **Why it hurts.** The second softmax sees numbers between 0 and 1 only: its gradients are a fraction of what they
    should be, and no class can get a probability near 1.

    **What to do.** Give the loss the outputs from before the softmax.

    **What looks like it and is healthy.** log_softmax twice, log(softmax), an attention softmax with a linear layer
    after it, the softmax of a teacher without gradients: no finding.

    **How to silence it.** `--ignore GL201`, or `--ignore 'GL201@head'` for one place.
    """
    for graph in context.graphs:
        yield from _double_activation(graph)


def _double_activation(graph: LossGraph) -> Iterator[Evidence]:
    """Its place is the module that applies the activation, where there is one such module; else the layer before it."""
    pair = next((one for one in graph.loss_activations if one in _SENTENCES), None)
    if pair is None:
        return
    site, place = "", ""
    if len(graph.activation_modules) == 1:
        site = graph.activation_modules[0]
        place = f" (module {site!r})"
    elif before := [one for one in graph.before_activation if one]:
        site = before[0]
        place = f" (after {site!r})"
    what, remedy = _SENTENCES[pair]
    yield Evidence(
        sites=(site,) if site else (),
        message=f"{what.format(place=place)}: its gradients are a fraction of what they should be.",
        remedy=remedy,
    )


_LOSSES = {
    "NllLoss": "cross entropy (nll_loss)",
    "NllLoss2D": "cross entropy (nll_loss)",
    "MseLoss": "squared error (mse_loss)",
    "BinaryCrossEntropy": "binary cross entropy",
    "BinaryCrossEntropyWithLogits": "binary cross entropy",
    "SmoothL1Loss": "smooth L1 error",
    "HuberLoss": "Huber error",
    "KlDiv": "Kullback-Leibler divergence",
    "L1Loss": "absolute error",
    "SoftMarginLoss": "margin loss",
    "MultiMarginLoss": "margin loss",
    "CtcLoss": "CTC loss",
    "SquaredError": "squared error",
    "AbsoluteError": "absolute error",
    "LogLikelihood": "log-likelihood",
}
"""What is to be made small, but for the last, and how a sentence calls it."""
_SEEN_OFTEN = 0.05
"""Other losses count that have at least this share of the backwards."""
_UPHILL_BEFORE, _UPHILL = 10, 0.5
"""Updates that go along the gradient by this cosine, in all looks before this step, make a loss larger. A first step
of SGD has -1, one of Adam about -0.8 (the cosine of numbers and their signs); uphill it is as much above zero."""
_RUNAWAY_LOSSES, _RUNAWAY_GROWTH, _RUNAWAY_PACE = 60, 10.0, 1.5


@rule("GL202", "loss-sign", certainty="exact", holds=2, ends_after=1000, explains=("GL106", *_SYMPTOMS))
def loss_sign(context: Context) -> Iterator[Evidence]:
    """The sign of the loss, or of the optimizer's steps, is wrong: training makes the error larger.

    **What it sees.** The terms of the loss with their signs, read off its graph: a cross entropy, a squared error or
    another loss function with a minus before it, a log-likelihood without one. `maximize=True`, a learning rate below
    zero, or updates that go along the gradient turn the sign once more. Of a loss that it does not know: values that
    fall below zero faster and faster.

    **Why it hurts.** The model learns to be wrong, and its weights grow without end.

    **What to do.** Drop the minus, or `maximize=True`.

    **What looks like it and is healthy.** Minus the mean of log-probabilities times advantages, minus an entropy or a
    similarity, minus a log-density, a critic's difference of means, a reversed gradient: no finding. An adversary that
    makes the loss of another part larger: no finding where the loss has another term with the right sign, and no more
    than `info` where another loss has.

    **How to silence it.** `--ignore GL202`.
    """
    found = [evidence for graph in context.graphs for evidence in _wrong_sign(graph, context)]
    yield from found or _runaway(context)


def _wrong_sign(graph: LossGraph, context: Context) -> Iterator[Evidence]:
    known = [one for one in graph.terms if one.function in _LOSSES and one.factor]
    if not known:
        return
    turned_by, turn = _turned_by(graph, context)
    signs = [one.factor * turn * (-1 if one.function == "LogLikelihood" else 1) for one in known]
    if max(signs) > 0:
        return
    name = _LOSSES[known[0].function]
    factor = known[0].factor
    if turn < 0:
        message = f"{turned_by}, and the loss is a {name}, which is to be small: each step makes it larger."
        remedy = "Turn that round, so that the steps go against the gradient."
    elif known[0].function == "LogLikelihood":
        message = "the loss is the mean of log-probabilities of the labels without a minus: it makes them less likely."
        remedy = "Put a minus before it, or use nll_loss or cross_entropy."
    else:
        times = "minus" if factor == -1 else f"{factor:.3g} times"
        message = f"the loss is {times} a {name}: each step makes the error larger."
        remedy = "Drop the minus."
    yield Evidence(
        message=message,
        remedy=remedy,
        numbers={"factor": factor, "direction": turn},
        severity="info" if _is_adversarial(graph, context) else None,
        first_step=0,
    )


def _turned_by(graph: LossGraph, context: Context) -> tuple[str, float]:
    """What makes the steps go uphill, and -1; or nothing, and 1."""
    settings = [(one.name, group) for name in graph.reached for one, group in context.settings(name)]
    if settings and all(bool(group.get("maximize")) for _, group in settings):
        return f"{settings[0][0]} has maximize=True", -1.0
    if settings and all(group.get("lr", 0.0) < 0 for _, group in settings):
        return f"the learning rate of {settings[0][0]} is {settings[0][1]['lr']:.3g}", -1.0
    uphill = _uphill(context)
    if uphill is not None and uphill > _UPHILL and len(list(_counted(context))) == 1:
        return f"the updates go along the gradient (cosine {uphill:.2f}) and not against it", -1.0
    return "", 1.0


def _counted(context: Context) -> Iterator[int]:
    return (place for place, one in enumerate(context.optimizers) if one.is_counted or one.num_steps)


def _uphill(context: Context) -> float | None:
    """The smallest cosine between update and gradient of early looks, the median over matrices; None: not known."""
    try:
        gradients, updates = context.samples["weight_grad"], context.samples["update"]
    except Abstain:
        return None
    early = context.samples.steps < _UPHILL_BEFORE
    if early.sum() < 2:
        return None
    gradients, updates = gradients[early], updates[early]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        sizes = np.linalg.norm(gradients, axis=2) * np.linalg.norm(updates, axis=2)
        cosines = (gradients * updates).sum(2) / np.where(sizes > 0, sizes, np.nan)
    if np.isnan(cosines).all(1).any():
        return None
    return float(np.nanmedian(cosines, axis=1).min())


def _is_adversarial(graph: LossGraph, context: Context) -> bool:
    """Whether another loss with the right sign is trained too, or the gradient reaches what others train."""
    owners = {place for name in graph.reached if (one := context.parameter(name)) for place in one.optimizers}
    others = [
        one
        for one in context.graphs
        if one is not graph and one.num_backwards >= _SEEN_OFTEN * max(graph.num_backwards, 1)
    ]
    return len(owners) > 1 or any(
        term.factor * (-1 if term.function == "LogLikelihood" else 1) > 0
        for other in others
        for term in other.terms
        if term.function in _LOSSES
    )


def _runaway(context: Context) -> Iterator[Evidence]:
    """A loss of one kind, of one optimizer, that is below zero and falls faster and faster."""
    graphs = [one for one in context.graphs if one.num_backwards]
    if len(list(_counted(context))) != 1 or len(graphs) != 1 or len(context.losses) != 1:
        return
    quarters = _quarters(context.losses[0])
    if quarters is None:
        return
    falls = -np.diff(quarters)
    start = max(abs(quarters[0]), abs(context.losses[0].values[0]))
    is_faster = falls[0] > 0 and bool((falls[1:] > _RUNAWAY_PACE * falls[:-1]).all())
    if quarters[-1] < 0 and is_faster and abs(quarters[-1]) > _RUNAWAY_GROWTH * start:
        yield Evidence(
            message=f"the loss is below zero and falls faster and faster, from {quarters[0]:.3g} to "
            f"{quarters[-1]:.3g}: what is minimised has no lower bound.",
            remedy="Look for a minus that is one too many, or one that is missing before a log-likelihood.",
            numbers={"first": float(quarters[0]), "last": float(quarters[-1])},
            severity="info",  # so falls for a while a similarity, too, that has a bound
        )


def _quarters(series: LossSeries) -> np.ndarray | None:
    """The median of each quarter of a loss; None where it is too short or not finite."""
    if len(series.values) < _RUNAWAY_LOSSES or not np.isfinite(series.values).all():
        return None
    return np.array([float(np.median(part)) for part in np.array_split(series.values, 4)])


_NO_PATH_SHARE = 0.9
"""Such a share of the losses has no way to a parameter; a detector has some batches without a target."""


@rule(
    "GL203",
    "no-path",
    certainty="exact",
    severity="error",
    holds=3,
    ends_after=1000,
    explains=("GL103", "GL104", "GL106", *_SYMPTOMS),
)
def no_path(context: Context) -> Iterator[Evidence]:
    """The loss has no path to weights that are to be trained, or only one along which the gradient is zero.

    **What it sees.** Losses that are leaves, made anew from numbers, or that come from tensors alone that were cut off
    from the graph; parameters that the loss reaches by round, sign, floor and the like only, and whose gradient is
    exactly zero. The place is the layer before such a function.

    **Why it hurts.** These weights stay as they were initialised.

    **What to do.** Keep tensors from the model to the loss; put a smooth function, or a straight-through estimator,
    in place of the rounding.

    **What looks like it and is healthy.** Rounding with a straight-through estimator, some batches whose loss is a
    constant, and gradients that are handed on by hand in parts: no finding.

    **How to silence it.** `--ignore GL203`, or `--ignore 'GL203@quantizer.*'` for one place.
    """
    graphs = [one for one in context.graphs if one.num_backwards]
    yield from _leaf_loss(graphs, context)
    yield from _cut(graphs, context)


def _leaf_loss(graphs: Sequence[LossGraph], context: Context) -> Iterator[Evidence]:
    without = [one for one in graphs if one.is_leaf or one.is_of_no_parameter]
    num_without, num = sum(one.num_backwards for one in without), sum(one.num_backwards for one in graphs)
    if not without or num_without < _NO_PATH_SHARE * num:
        return
    if any(one.has_gradient_arrived for one in context.parameters):
        return  # another loss trains the model, or a hook of the backward does
    if without[0].is_leaf:
        what = "the loss is a tensor without a graph, made anew from numbers"
    else:
        what = f"the graph of the loss ({without[0].root}) begins at a tensor that was cut off from the model"
    yield Evidence(
        message=f"{what}, in {num_without} of {num} backwards: no weight gets a gradient from it.",
        remedy="Make the loss of the model's outputs as they are, without item(), numpy(), tensor(), argmax or "
        "detach() between; requires_grad_() silences the error but brings no gradient back.",
        numbers={"backwards": float(num_without)},
        key="leaf",
        first_step=0,
    )


def _cut(graphs: Sequence[LossGraph], context: Context) -> Iterator[Evidence]:
    """Parameters that no loss reaches but by functions without a gradient."""
    cut = frozenset[str]().union(*(one.cut for one in graphs))
    trained = frozenset[str]().union(*(one.reached - one.cut for one in graphs))
    silent = [
        one
        for one in context.parameters
        if one.requires_grad and one.name in cut - trained and _is_zero(one.name, context)
    ]
    if not silent:
        return
    functions = sorted({function for one in graphs for function in one.cut_by})
    names = " and ".join(function.lower() for function in functions)
    modules = {one.module for one in silent}
    before = dict.fromkeys(name for one in graphs for name in one.before_cut if name in modules)
    is_all = len(silent) == sum(one.requires_grad and one.is_reached for one in context.parameters)
    sites = [*before, *(one.name for one in silent if one.module not in before)]
    where = "all weights" if is_all else f"{_counted_parameters(len(silent))} up to {sites[0]!r}"
    yield Evidence(
        sites=tuple(one for one in sites if one),
        message=f"the loss reaches {where} by {names} only, whose gradient is exactly zero: they never change.",
        remedy=f"Take {names} out of the path of the loss, or pass the gradient straight through: "
        "x + (x.round() - x).detach().",
        numbers={"parameters": float(len(silent))},
        key="cut",
        first_step=0,
    )


def _counted_parameters(number: int) -> str:
    return "1 parameter" if number == 1 else f"{number} parameters"


def _is_zero(name: str, context: Context) -> bool:
    """Whether the gradient of a parameter was zero wherever it was measured."""
    if name not in context.readings.sites or "weight_grad.norm" not in context.readings:
        return True
    norms = context.readings["weight_grad.norm"][:, context.readings.sites.index(name)]
    return not np.nansum(np.abs(norms)) > 0


_AVERAGED = 2.0
"""So many times the sum of the factors of a step's losses is what a mean would have, 1. Measured over the corpus: 1.0
where they are averaged, 4 to 8 where they are not."""
_FEWEST = 3
"""Two backwards may be two halves of one loss, as of a discriminator's real and fake inputs: no more than `info`."""
_UNCHANGED = 0.02


@rule("GL204", "not-averaged", certainty="exact", holds=2, ends_after=1000, explains=("GL106", *_SYMPTOMS))
def not_averaged(context: Context) -> Iterator[Evidence]:
    """Gradients of several batches are added up for one step, and not averaged.

    **What it sees.** Several forwards with a backward each between two steps, all from one kind of loss, which is a
    mean over its batch and is not divided; the gradients are not divided either before the step.

    **Why it hurts.** With SGD each step is as many times too large as there are backwards, as with a learning rate
    that is too high by that factor.

    **What to do.** Divide the loss by the number of backwards a step.

    **What looks like it and is healthy.** Losses that are sums, several losses of one forward, gradients that are
    clipped, several optimizers: no finding. Two halves of one loss, of real and of fake inputs: `info`. Adam and its
    like divide by the size of the gradient, so that a sum makes the same steps as a mean: `info`.

    **How to silence it.** `--ignore GL204`.
    """
    count = context.accumulation
    if count is None or count < 2 or len(list(_counted(context))) != 1:
        return
    graphs = [one for one in context.graphs if one.num_parameters and one.num_backwards]
    if len(graphs) != 1 or not _is_mean(graphs[0]):
        return
    share = max(abs(one.factor) for one in _main_terms(graphs[0]))
    kept = _kept(context)
    if share * count < _AVERAGED or (kept is None and context.gradients_rescaled):
        return
    if kept is not None and abs(kept - 1) > _UNCHANGED:
        return
    optimizer = context.optimizers[next(_counted(context))]
    is_harmless = optimizer.is_adaptive or count < _FEWEST
    effect = (
        f"{optimizer.name} makes the same steps of a sum as of a mean"
        if optimizer.is_adaptive
        else f"each step of {optimizer.name} is {share * count:.3g} times that of one batch"
    )
    yield Evidence(
        message=f"{count} backwards come to one step, each of a mean over its batch, and none is divided: {effect}.",
        remedy=f"Divide the loss by {count} before the backward.",
        numbers={"backwards": float(count), "factor": share},
        severity="info" if is_harmless else None,
        first_step=0,
    )


def _main_terms(graph: LossGraph) -> Sequence[LossTerm]:
    """The terms that are losses, without those that only hold weights small; all where none is known."""
    return [one for one in graph.terms if one.function in _LOSSES] or graph.terms


def _is_mean(graph: LossGraph) -> bool:
    return bool(graph.terms) and all(one.reduction == "mean" for one in _main_terms(graph))


def _kept(context: Context) -> float | None:
    """What is left of the gradients' size when the optimizer uses them; None where it is not measured."""
    try:
        before, after = context.readings["weight_grad.norm"], context.readings["weight_grad.norm@clipped"]
    except Abstain:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios: Iterable[float] = (after / before)[before > 0]
    known = np.array([one for one in ratios if np.isfinite(one)])
    return float(np.median(known)) if len(known) else None
