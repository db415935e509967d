"""The graph of a loss, read just before its backward: by which functions it comes from the model.

Belongs here: walking the nodes of autograd, and their names. Does not: what is wrong with them (`diagnose.rules.loss`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from gradlab.diagnose.context import LossGraph

MOST_NODES = 50_000
"""A graph with more nodes is read as far as these, nearest the loss first."""
_PASSES_ON = frozenset(
    "View UnsafeView ReshapeAlias AsStrided Squeeze Unsqueeze Transpose T Permute Expand Select Slice Index Narrow "
    "Unbind Split Cat Stack Clone ToCopy Contiguous Alias Flatten".split()
)
"""Nodes that give the same numbers in another shape, dtype or choice."""


def read_loss_graph(loss: Any, parameters: Collection[int]) -> LossGraph | None:
    """What the graph of a loss says; None where it reaches none of some parameters.

    Args:
        loss: what a backward starts from: a tensor, or several.
        parameters: the ids of the parameters of the model.
    Cost: about 1.5 microseconds a node; no node, tensor or saved value is kept.
    """
    tensors = [loss] if isinstance(loss, Tensor) else list(loss) if isinstance(loss, Sequence) else []
    roots = [tensor.grad_fn for tensor in tensors if isinstance(tensor, Tensor) and tensor.grad_fn is not None]
    if not roots:
        return None
    reached: set[int] = set()
    pairs: set[tuple[str, str]] = set()
    seen: set[Any] = set(roots)
    level: list[Any] = roots
    is_whole = True
    while level:
        following: list[Any] = []
        for node in level:
            name = plain_name(node.name())
            if name == _LEAF:
                if id(node.variable) in parameters:
                    reached.add(id(node.variable))
            elif name in _LOSSES and (below := _activation_below(node)):
                pairs.add((name, below))
            for inner, _ in node.next_functions:
                if inner is not None and inner not in seen:
                    seen.add(inner)
                    following.append(inner)
        if len(seen) > MOST_NODES:
            is_whole = False
            break
        level = following
    if not reached:
        return None
    return LossGraph(
        root=plain_name(roots[0].name()),
        loss_activations=tuple(sorted(pairs)),
        activation_modules=(),
        num_parameters=len(reached),
        num_nodes=len(seen),
        is_whole=is_whole,
    )


_LEAF = "torch::autograd::AccumulateGrad"
_LOSSES = frozenset(("LogSoftmax", "NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits"))
"""Functions whose input must not have gone through a softmax or a sigmoid."""


def _activation_below(node: Any) -> str:
    """The softmax or sigmoid that makes the input of a node, with nothing but other shapes between; "" without one."""
    inner = node.next_functions[0][0] if node.next_functions else None
    while inner is not None and plain_name(inner.name()) in _PASSES_ON and len(inner.next_functions) == 1:
        inner = inner.next_functions[0][0]
    name = plain_name(inner.name()) if inner is not None else ""
    return name if name in ("Softmax", "Sigmoid") else ""


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """The name of a node without what torch adds to it: `NllLoss` of `NllLossBackward0`."""
    return re.sub(r"Backward\d*(?:_copy)?$", "", name)
