"""The loss: functions that it applies itself, and that the model has applied already."""

from __future__ import annotations

from gradlab.diagnose.context import LossGraph
from gradlab.frame import Finding

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


def double_activation(step: int, graph: LossGraph) -> Finding | None:
    """A softmax or sigmoid before a loss that has its own: an exact fact of the graph.

    Its place is the module that applies the activation, where there is one such module only.
    """
    site = graph.activation_modules[0] if len(graph.activation_modules) == 1 else ""
    place = f" (module {site!r})" if site else ""
    for pair in graph.loss_activations:
        if pair in _SENTENCES:
            what, remedy = _SENTENCES[pair]
            return Finding(
                step=step,
                kind="double_softmax",
                site=site,
                message=f"{what.format(place=place)}: its gradients are a fraction of what they should be.",
                advice=remedy,
            )
    return None
