"""The terms of a loss: what it is the sum of, and with which sign each of them is in it.

Belongs here: walking sums, means and plain factors from the root down. Does not: the rest of the graph (`loss_graph`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gradlab.diagnose.context import LossTerm
from gradlab.facts.loss_graph import LOSSES, PASSES_ON, REDUCTIONS, number_of, plain_name, saved

_MOST_TERMS = 128
_MOST_WEIGHTS = 1 << 18


def terms_of(root: Any) -> Iterator[LossTerm]:
    """What a loss is a sum of, each with its factor, as far as sums, means, plain factors and weights go."""
    waiting: list[tuple[Any, float, str, bool]] = [(root, 1.0, "", False)]
    for _ in range(_MOST_TERMS):
        if not waiting:
            return
        node, factor, reduction, is_weighted = waiting.pop()
        name = plain_name(node.name())
        inner = [one for one, _ in node.next_functions]
        present = [one for one in inner if one is not None]
        if name in LOSSES:
            own = REDUCTIONS.get(getattr(node, "_saved_reduction", None), "")  # type: ignore[arg-type]
            yield LossTerm(function=name, factor=factor, reduction=reduction if own == "none" else own)
        elif name in ("Add", "Sub", "Rsub"):
            pairs = zip(inner, _factors(name, node), strict=False)
            waiting += [(one, factor * own, reduction, is_weighted) for one, own in pairs if one is not None]
        elif name in ("Gather", "Index") and len(present) == 1 and _is_log_softmax(present[0]):
            # log-probabilities of what was chosen, times something, are a policy gradient: of any sign
            yield LossTerm(function=name if is_weighted else "LogLikelihood", factor=factor, reduction=reduction)
        elif is_weighted and name == "LogSoftmax":
            yield LossTerm(function="LogLikelihood", factor=factor, reduction=reduction)
        elif len(present) == 1 and (name in ("Neg", "Mean", "Sum", "MaskedFill") or name in PASSES_ON):
            reduction = reduction or (name.lower() if name in ("Mean", "Sum") else "")
            waiting.append((present[0], -factor if name == "Neg" else factor, reduction, is_weighted))
        elif name in ("Stack", "Cat"):
            waiting += [(one, factor, reduction, is_weighted) for one in present]
        elif name in ("Mul", "Div") and len(present) == 1 and (number := number_of(name, node)) is not None:
            waiting.append((present[0], factor * number, reduction, is_weighted))
        elif (
            name in ("Mul", "Div")
            and len(present) == 1
            and (name == "Mul" or inner[0] is not None)
            and _is_by_weights(node)
        ):
            waiting.append((present[0], factor, reduction, True))
        else:
            yield LossTerm(function=_kind_of_term(name, node), factor=factor, reduction=reduction)


def _factors(name: str, node: Any) -> tuple[float, float]:
    """Those of the two inputs of a sum or a difference."""
    alpha = getattr(node, "_saved_alpha", 1)
    alpha = float(alpha) if isinstance(alpha, int | float) else 1.0
    return {"Add": (1.0, alpha), "Sub": (1.0, -alpha), "Rsub": (-alpha, 1.0)}[name]


def _is_by_weights(node: Any) -> bool:
    """Whether a product or quotient is by numbers none of which is below zero, as far as that is free to know."""
    weights = next((one for key in ("other", "self") if (one := saved(node, key)) is not None), None)
    if weights is None or not weights.is_cpu or not 0 < weights.numel() <= _MOST_WEIGHTS or weights.is_complex():
        return False
    return weights.dtype == torch.bool or bool(weights.detach().amin() >= 0)


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
