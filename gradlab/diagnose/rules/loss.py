"""The loss: functions that it applies itself, and that the model has applied already."""

from __future__ import annotations

from collections.abc import Iterator

from gradlab.diagnose.context import Context, LossGraph
from gradlab.diagnose.registry import Evidence, rule

_SENTENCES = {
    ("LogSoftmax", "Softmax"): (
        "the outputs go through a softmax{place}, and then through the softmax that cross_entropy (or log_softmax) "
        "applies itself",
        "Give the loss the outputs from before the softmax.",
    ),
    ("NllLoss", "Softmax"): (
        "nll_loss is given probabilities of a softmax{place} where it expects their logarithms",
        "Use log_softmax in place of softmax, or cross_entropy on the outputs from before it.",
    ),
    ("BinaryCrossEntropyWithLogits", "Sigmoid"): (
        "the outputs go through a sigmoid{place}, and then through the sigmoid that binary_cross_entropy_with_logits "
        "applies itself",
        "Give the loss the outputs from before the sigmoid.",
    ),
}
_SENTENCES["NllLoss2D", "Softmax"] = _SENTENCES["NllLoss", "Softmax"]


@rule("GL201", "double-softmax", certainty="exact", explains=("GL302", "GL402", "GL5"))
def double_softmax(context: Context) -> Iterator[Evidence]:
    """A softmax or sigmoid before a loss function that applies its own.

    **What it sees.** The graph of the loss: a softmax whose result goes, through nothing but other shapes, into
    log_softmax or nll_loss; a sigmoid that goes into binary_cross_entropy_with_logits.

    **Why it hurts.** The second softmax sees numbers between 0 and 1 only: its gradients are a fraction of what they
    should be, and no class can get a probability near 1.

    **What to do.** Give the loss the outputs from before the softmax.

    **What looks like it and is healthy.** log_softmax twice, log(softmax), an attention softmax with a linear layer
    after it, the softmax of a teacher without gradients: no finding.
    """
    for graph in context.graphs:
        yield from _double_activation(graph)


def _double_activation(graph: LossGraph) -> Iterator[Evidence]:
    """Its place is the module that applies the activation, where there is one such module only."""
    site = graph.activation_modules[0] if len(graph.activation_modules) == 1 else ""
    place = f" (module {site!r})" if site else ""
    for pair in graph.loss_activations:
        if pair in _SENTENCES:
            what, remedy = _SENTENCES[pair]
            yield Evidence(
                sites=(site,) if site else (),
                message=f"{what.format(place=place)}: its gradients are a fraction of what they should be.",
                remedy=remedy,
            )
            return
