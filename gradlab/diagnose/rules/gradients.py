"""Gradients on their way: not reset, not arriving, cut in time, and graphs that outlive them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradlab.diagnose.context import Context, OptimizerFacts, ParameterFacts
from gradlab.diagnose.places import covering, named
from gradlab.diagnose.registry import Evidence, rule

_BY = {"data": ".data", "no_grad": "no_grad", "numpy": "NumPy", "__array__": "NumPy", "tolist": "tolist()"}


@rule("GL103", "no-zero-grad", certainty="exact", severity="error", explains=("GL204", "GL3", "GL4", "GL5", "GL6"))
def no_zero_grad(context: Context) -> Iterator[Evidence]:
    """Gradients that are not reset from one step to the next, so that each step follows the sum of all before.

    **What it sees.** Between two steps of one optimizer the gradient of a parameter has become neither None nor
    another tensor, nothing was written to it outside of a backward, its norm is the same before the next backward, and
    that backward has added to it: before three of the last eight steps.

    **Why it hurts.** Each step uses all gradients so far, as momentum would that never decays: the steps grow,
    overshoot and swing, and clipping hides it.

    **What to do.** Call `optimizer.zero_grad()` once a step, before the backward, on the optimizer that has the
    parameters.

    **What looks like it and is healthy.** Several backwards before one step (accumulation), `set_to_none=False`,
    gradients zeroed or scaled by hand, also by `p.grad.data`, the two backwards of SAM, the closure of L-BFGS, a
    discriminator that a generator's backward adds to before it is reset: no finding.
    """
    having = [one for one in context.optimizers if one.not_reset]
    if not having:
        return
    silent = [name for one in having for name in one.not_reset]
    reset = {name for one in context.optimizers for name in one.were_reset} - set(silent)
    sites = covering(silent, [*silent, *reset]) if reset else ()
    yield Evidence(
        sites=sites,
        message=_not_reset(having, sites),
        remedy=(
            f"Call zero_grad() on the optimizer (or module) that has {named(sites)}, before the backward of each step."
            if sites
            else "Call optimizer.zero_grad() before the backward of each step."
        ),
        numbers={"steps_not_reset": max(one.num_not_reset for one in having)},
    )


def _not_reset(having: list[OptimizerFacts], sites: tuple[str, ...]) -> str:
    whose = f"of {named(sites)} " if sites else ""
    names = " and ".join(dict.fromkeys(one.name for one in having))
    times = max(one.num_not_reset for one in having)
    return (
        f"the gradients {whose}were not reset before {times} of the last 8 steps of {names}: each step follows the sum "
        "of this gradient and all earlier ones."
    )


@rule("GL106", "no-gradient-arrives", certainty="exact", explains=("GL108", "GL3", "GL4", "GL5", "GL6"))
def no_gradient_arrives(context: Context) -> Iterator[Evidence]:
    """Parameters of an optimizer that have never had a gradient.

    **What it sees.** No gradient has arrived in 50 backwards. Where values of the parameter go is followed through a
    few forwards: where they reach the loss, or the call of another layer, though no history leads back from there, the
    branch is cut off (a warning). Where they reach nothing the parameter is not used (an information).

    **Why it hurts.** The parameters stay as they were initialised: what comes after them learns from random features.

    **What to do.** Remove the `detach()`, `.data`, `no_grad`, NumPy or `argmax` on the way from there to the loss, or
    take the parameters out of the optimizer.

    **What looks like it and is healthy.** Heads, experts and blocks that some steps leave out, a generator whose turn
    is the other backward, a teacher or target network in the same optimizer that is a copy or is written to in place,
    layers that were trained before: no warning.
    """
    if context.num_backwards < context.limit(50):
        return
    silent = [
        one
        for one in context.parameters
        if one.requires_grad
        and not one.has_gradient_arrived
        and not one.is_changed_in_place
        and _is_stepped(one, context)
    ]
    if not silent or any(one.is_used is None for one in silent):
        return
    everything = [one.name for one in context.parameters]
    by_place = {
        place: [one for one in silent if one.name == place or one.name.startswith(f"{place}.")]
        for place in covering([one.name for one in silent], everything)
    }
    cut = {place: ones for place, ones in by_place.items() if _is_cut(ones, context)}
    unused = {place: ones for place, ones in by_place.items() if place not in cut}
    if cut:
        yield _about_cut(cut, context)
    if unused:
        yield _about_unused(unused, context)


def _is_stepped(one: ParameterFacts, context: Context) -> bool:
    return any(context.optimizers[place].num_steps > 0 for place in one.optimizers)


def _is_cut(ones: Sequence[ParameterFacts], context: Context) -> bool:
    """Whether values of a place go on without history, and it is neither a copy nor trained before."""
    is_trained = all(one.was_trained for one in ones)
    return any(one.is_cut for one in ones) and not is_trained and not _is_copy(ones, context)


def _is_copy(ones: Sequence[ParameterFacts], context: Context) -> bool:
    """Whether each matrix has had the norm of another of its shape, one with gradients, at the first look."""
    matrices = [one for one in ones if one.is_matrix]
    if not matrices or "weight.norm" not in context.readings:
        return False
    norms = dict(zip(context.readings.sites, context.readings["weight.norm"][0].tolist(), strict=True))
    others = {(one.shape, norms.get(one.name)) for one in context.parameters if one.has_gradient_arrived}
    return all(one.name in norms and (one.shape, norms[one.name]) in others for one in matrices)


def _about_cut(cut: Mapping[str, Sequence[ParameterFacts]], context: Context) -> Evidence:
    ones = [one for group in cut.values() for one in group]
    known = next((one for one in ones if one.is_cut and one.cut_by), None)
    by = _BY.get(known.cut_by, f"{known.cut_by}()") if known is not None else "functions without a gradient"
    before = context.parameter(known.cut_before) if known is not None and known.cut_before else None
    where = f"before {before.module or before.name}" if before is not None else "before the loss"
    places = named(list(cut))
    return Evidence(
        sites=tuple(cut),
        message=(
            f"no gradient has reached {places} ({_count(ones)}) in {context.num_backwards} backwards: "
            f"{by} cuts off what comes from there, {where}."
        ),
        remedy=f"Let the history through (remove {by} {where}), or take {places} out of the optimizer.",
        numbers={"parameters": len(ones), "backwards": context.num_backwards},
        key="cut",
    )


def _about_unused(unused: Mapping[str, Sequence[ParameterFacts]], context: Context) -> Evidence:
    ones = [one for group in unused.values() for one in group]
    why = "no loss depends on them" if any(one.is_used for one in ones) else "no forward uses them"
    return Evidence(
        sites=tuple(unused),
        message=(
            f"no gradient has reached {named(list(unused))} ({_count(ones)}) in {context.num_backwards} backwards: "
            f"{why}."
        ),
        remedy="Use them, or take them out of the optimizer.",
        numbers={"parameters": len(ones), "backwards": context.num_backwards},
        severity="info",
        key="unused",
    )


def _count(ones: Sequence[ParameterFacts]) -> str:
    return f"{len(ones)} parameter{'s' * (len(ones) > 1)}"


@rule("GL107", "detached-state", certainty="exact", explains=("GL106", "GL302", "GL402", "GL5"))
def detached_state(context: Context) -> Iterator[Evidence]:
    """A recurrent state that is detached at every time step, so that nothing is learned over time.

    **What it sees.** Values are followed through a few forwards: a parameter was called three times or more with
    values that come from its own result of the call before, and never with a history that leads back to that call.

    **Why it hurts.** No gradient goes back in time: the cell cannot learn what to keep for later steps.

    **What to do.** Detach the state between batches, before the forward, and not between the time steps of one.

    **What looks like it and is healthy.** Truncated backpropagation (most transitions have a history), layers shared by
    inputs that do not come from each other, sampled actions and tokens that are fed back, adversarial examples made by
    `autograd.grad`: no finding.
    """
    # Measured: every transition without history in faulty trainings, none or one in eight in healthy ones.
    ones = [one for one in context.parameters if one.requires_grad and one.num_detached_calls >= context.limit(3)]
    if not ones:
        return
    everything = [one.name for one in context.parameters]
    sites = _cells([one.name for one in ones], everything)
    times = max(one.num_detached_calls for one in ones)
    yield Evidence(
        sites=sites,
        message=(
            f"{named(sites)} got its own result of the time step before {times} times in one pass, each time without "
            "history: no gradient goes back in time."
        ),
        remedy="Do not detach the state between time steps; detach it between batches, before the forward.",
        numbers={"detached_calls": times},
    )


def _cells(names: Sequence[str], everything: Sequence[str]) -> tuple[str, ...]:
    """The modules of some parameters, or the modules around these where they are half of their parameters or more."""
    found = []
    for place in (one for whole in covering(names, everything) for one in _items(whole, everything)):
        around = place.rpartition(".")[0]
        inside = [one for one in everything if one.startswith(f"{around}.")]
        mine = [one for one in names if one.startswith(f"{around}.")]
        is_item = place.rpartition(".")[2].isdigit()
        found.append(around if around and not is_item and 2 * len(mine) >= len(inside) else place)
    return tuple(dict.fromkeys(found))


def _items(place: str, everything: Sequence[str]) -> tuple[str, ...]:
    """The items of a list of modules; any other place itself."""
    children = {one[len(place) + 1 :].partition(".")[0] for one in everything if one.startswith(f"{place}.")}
    if len(children) > 1 and all(one.isdigit() for one in children):
        return tuple(f"{place}.{one}" for one in sorted(children, key=int))
    return (place,)


@rule("GL109", "retained-graph", certainty="exact", ends_after=20)
def retained_graph(context: Context) -> Iterator[Evidence]:
    """Graphs of past steps that are still held, as by a list of losses.

    **What it sees.** Marks on the nodes of losses and of the model's outputs, each of which lives as long as its graph:
    six or more graphs that are five steps old or older.

    **Why it hurts.** A graph holds nodes and, as long as no backward has freed them, all activations of its forward:
    memory grows until there is none left.

    **What to do.** Keep `loss.item()` or `output.detach()` in place of the tensors, and evaluate under
    `torch.no_grad()`.

    **What looks like it and is healthy.** The log probabilities of an episode, truncated backpropagation through time,
    several backwards through one graph, a loss of the step before that a variable still holds: no finding.
    """
    # Measured: 0 to 1 in healthy trainings; 40 or more after an evaluation, and one a step where losses are kept.
    if context.retained_graphs < context.limit(6):
        return
    is_growing = context.retained_steps > 3
    since = "earlier steps are still held, more at each step" if is_growing else "an earlier step are still held"
    yield Evidence(
        message=f"the graphs of {context.retained_graphs} forwards of {since}: none of them can be freed.",
        remedy="Keep loss.item() or output.detach() in place of the tensors, and evaluate under torch.no_grad().",
        numbers={"graphs": context.retained_graphs, "steps": context.retained_steps},
    )
