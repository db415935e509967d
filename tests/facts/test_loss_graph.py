"""What stands between a loss and a model: double activations found, and everything that looks like one passed over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.facts.loss_graph import read_graph, roots_of

LABELS = torch.tensor([0, 2, 1, 1])
SOFT, BITS = torch.full((4, 3), 1 / 3), torch.ones(4, 3)


def attended(z: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(F.softmax(z @ z.T, -1) @ z, torch.eye(3)), LABELS)


TWO_SOFTMAXES = ("LogSoftmax", "Softmax")
FAULTY: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, str]]] = {
    "cross entropy": (lambda z: F.cross_entropy(z.softmax(1), LABELS), TWO_SOFTMAXES),
    "soft labels": (lambda z: F.cross_entropy(z.softmax(1), SOFT), TWO_SOFTMAXES),
    "another shape": (lambda z: F.cross_entropy(z.softmax(1).view(2, 2, 3).flatten(0, 1), LABELS), TWO_SOFTMAXES),
    "scaled": (lambda z: 1024 * F.cross_entropy(z.softmax(1), LABELS), TWO_SOFTMAXES),
    "one term of two": (lambda z: F.mse_loss(z, SOFT) + F.cross_entropy(z.softmax(1), LABELS), TWO_SOFTMAXES),
    "nll": (lambda z: F.nll_loss(z.softmax(1), LABELS), ("NllLoss", "Softmax")),
    "logits of a sigmoid": (
        lambda z: F.binary_cross_entropy_with_logits(z.sigmoid(), BITS),
        ("BinaryCrossEntropyWithLogits", "Sigmoid"),
    ),
}  # fmt: skip
HEALTHY: dict[str, Callable[[Tensor], Tensor]] = {
    "cross entropy": lambda z: F.cross_entropy(z, LABELS),
    "log_softmax twice": lambda z: F.cross_entropy(z.log_softmax(1), LABELS),
    "the logarithm of a softmax": lambda z: F.nll_loss(z.softmax(1).log(), LABELS),
    "a teacher": lambda z: F.kl_div(z.log_softmax(1), (2 * z).softmax(1).detach(), reduction="batchmean"),
    "entropy": lambda z: -(z.softmax(1) * z.log_softmax(1)).sum(),
    "attention": attended,
    "a sigmoid and its loss": lambda z: F.binary_cross_entropy(z.sigmoid(), BITS),
    "a gate": lambda z: F.cross_entropy(z.sigmoid() * z, LABELS),
    "squares of probabilities": lambda z: F.mse_loss(z.softmax(1), SOFT),
}


def graph_of(loss_of: Callable[[Tensor], Tensor]):
    layer = nn.Linear(5, 3)
    return read_graph(roots_of(loss_of(layer(torch.randn(4, 5)))))


@pytest.mark.parametrize("name", FAULTY)
def test_an_activation_that_the_loss_applies_itself_is_found(name: str) -> None:
    loss_of, pair = FAULTY[name]
    assert graph_of(loss_of).loss_activations == (pair,)


@pytest.mark.parametrize("name", HEALTHY)
def test_what_only_looks_like_one_is_not(name: str) -> None:
    graph = graph_of(HEALTHY[name])
    assert graph.loss_activations == ()
    assert (len(graph.leaves), graph.is_whole) == (2, True)


def test_the_root_is_named_as_autograd_names_it() -> None:
    assert graph_of(HEALTHY["cross entropy"]).root == "NllLoss"
