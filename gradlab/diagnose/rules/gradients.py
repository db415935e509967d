"""Gradients on their way: not reset, not arriving, cut in time, and graphs that outlive them."""

from __future__ import annotations

from collections.abc import Iterator

from gradlab.diagnose.context import Context, OptimizerFacts
from gradlab.diagnose.places import covering, named
from gradlab.diagnose.registry import Evidence, rule


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
