"""The terms of a loss: what it is the sum of, and with which sign each of them is in it.

Belongs here: walking sums, means and plain factors from the root down. Does not: the rest of the graph (`loss_graph`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradlab.diagnose.context import LossTerm
from gradlab.facts.loss_graph import LOSSES, PASSES_ON, REDUCTIONS, number_of, plain_name

_MOST_TERMS = 128


def terms_of(root: Any) -> Iterator[LossTerm]:
    """What a loss is a sum of, each with its factor, as far as sums, means and plain factors go."""
    waiting: list[tuple[Any, float, str]] = [(root, 1.0, "")]
    for _ in range(_MOST_TERMS):
        if not waiting:
            return
        node, factor, reduction = waiting.pop()
        name = plain_name(node.name())
        inner = [one for one, _ in node.next_functions]
        present = [one for one in inner if one is not None]
        if name in LOSSES:
            own = REDUCTIONS.get(getattr(node, "_saved_reduction", None), "")  # type: ignore[arg-type]
            yield LossTerm(function=name, factor=factor, reduction=reduction if own == "none" else own)
        elif name in ("Add", "Sub", "Rsub"):
            alpha = getattr(node, "_saved_alpha", 1)
            alpha = float(alpha) if isinstance(alpha, int | float) else 1.0
            factors = {"Add": (1.0, alpha), "Sub": (1.0, -alpha), "Rsub": (-alpha, 1.0)}[name]
            waiting += [
                (one, factor * own, reduction) for one, own in zip(inner, factors, strict=False) if one is not None
            ]
        elif name in ("Gather", "Index") and len(present) == 1 and _is_log_softmax(present[0]):
            yield LossTerm(function="LogLikelihood", factor=factor, reduction=reduction)
        elif len(present) == 1 and (name in ("Neg", "Mean", "Sum") or name in PASSES_ON):
            reduction = reduction or (name.lower() if name in ("Mean", "Sum") else "")
            waiting.append((present[0], -factor if name == "Neg" else factor, reduction))
        elif name in ("Stack", "Cat"):
            waiting += [(one, factor, reduction) for one in present]
        elif name in ("Mul", "Div") and len(present) == 1 and (number := number_of(name, node)) is not None:
            waiting.append((present[0], factor * number, reduction))
        else:
            yield LossTerm(function=_kind_of_term(name, node), factor=factor, reduction=reduction)


def _kind_of_term(name: str, node: Any) -> str:
    """What a term is where it is written by hand: `SquaredError`, `AbsoluteError`, or its function."""
    inner = node.next_functions[0][0] if node.next_functions else None
    if inner is not None and _is_difference(inner):
        if name == "Abs":
            return "AbsoluteError"
        if name == "Pow" and getattr(node, "_saved_exponent", None) in (2, 4):
            return "SquaredError"
    return name


def _is_difference(node: Any) -> bool:
    """Whether a node takes a given tensor from an output, or the other way round."""
    name = plain_name(node.name())
    return name in ("Sub", "Rsub") and sum(inner is not None for inner, _ in node.next_functions) == 1


def _is_log_softmax(node: Any) -> bool:
    """Whether a node gives log-probabilities: a log-softmax, or what torch.distributions makes of logits."""
    while node is not None and plain_name(node.name()) in PASSES_ON:
        node = node.next_functions[0][0]
    if node is None:
        return False
    inner = [plain_name(one.name()) for one, _ in node.next_functions if one is not None]
    name = plain_name(node.name())
    return name == "LogSoftmax" or (name == "Sub" and inner[-1:] == ["Logsumexp"])
