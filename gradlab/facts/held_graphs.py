"""Graphs that outlive their step: marks on their nodes, each of which lives as long as its graph.

One mark is put on the node of each loss, one on that of each output of the model in a forward with gradients: an
output may be kept without its loss, and an evaluation makes graphs without a backward.

Belongs here: making marks and counting those that live. Does not: who holds a graph (`diagnose.rules`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.autograd_engine import is_in_backward
from gradlab.hooks.call_hooks import ModuleHook
from gradlab.hooks.interpreter import must_not_record, without_torch_function

OLD = 5
"""A graph counts as held from so many steps after its own step on: rollouts of an episode are let go before."""
_MOST_LEVELS = 3
_MOST_ITEMS = 8


class _Mark:
    """Counts itself as long as it lives."""

    __slots__ = ("counter", "step")

    def __init__(self, counter: Counter[int], step: int) -> None:
        self.counter, self.step = counter, step
        counter[step] += 1

    def __del__(self) -> None:
        left = self.counter[self.step] - 1
        if left:
            self.counter[self.step] = left
        else:
            del self.counter[self.step]


class HeldGraphs:
    """Counts graphs of losses and of outputs that are still held. Cost: 2 microseconds a forward and a backward.

    Args:
        model: its forwards are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._losses: Counter[int] = Counter()
        self._outputs: Counter[int] = Counter()
        self._step = 0
        self._handle: Any = None

    def attach(self) -> None:
        """Begin to watch forwards of the model."""
        hook = ModuleHook(self._model, self._after_forward)
        self._handle = self._model.register_forward_hook(hook)

    def detach(self) -> None:
        """Watch no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def mark_loss(self, root: Any, step: int) -> None:
        """A backward is about to begin at a node."""
        self._step = step
        root.metadata["gradlab"] = _Mark(self._losses, step)

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if must_not_record() or not torch.is_grad_enabled() or is_in_backward():
            return
        with without_torch_function():
            node = _node_of(output)
            if node is not None:
                node.metadata["gradlab_output"] = _Mark(self._outputs, self._step)

    def num_held(self, step: int) -> int:
        """How many graphs of five steps ago and before are held."""
        return max(_num_old(self._losses, step), _num_old(self._outputs, step))

    def num_steps_held(self, step: int) -> int:
        """Of how many steps these are."""
        return len({one for kind in (self._losses, self._outputs) for one in list(kind) if one <= step - OLD})


def _num_old(counter: Counter[int], step: int) -> int:
    return sum(count for born, count in list(counter.items()) if born <= step - OLD)


def _node_of(output: Any, depth: int = 0) -> Any:
    """The node of the first tensor with a history in an output: a tensor, or tensors in tuples, dicts and the like."""
    if isinstance(output, Tensor):
        return output.grad_fn
    if depth < _MOST_LEVELS:
        inner = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
        for one in list(inner)[:_MOST_ITEMS]:
            node = _node_of(one, depth + 1)
            if node is not None:
                return node
    return None
