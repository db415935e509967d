"""Gradient hooks on leaf tensors: a parameter that a module hands out, an input that requires grad.

The hook of a tensor in the graph goes with the graph. A leaf is the user's own and lives on, and what is put on it has
to be taken off again at the end of the step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle


class LeafHooks:
    """The hooks of one step. None of them keeps its tensor alive."""

    def __init__(self) -> None:
        self._placed: list[tuple[weakref.ref[Tensor], RemovableHandle]] = []

    def register(self, tensor: Tensor, hook: Callable[[Tensor], Any]) -> None:
        """Put a hook on a tensor; one that is no leaf loses it with its graph."""
        handle = tensor.register_hook(hook)
        if tensor.is_leaf:
            self._placed.append((weakref.ref(tensor), handle))

    def remove(self) -> None:
        """Leave nothing on any leaf: no hook, and no empty table of hooks either."""
        for ref, handle in self._placed:
            handle.remove()
            tensor = ref()
            if tensor is not None and not tensor._backward_hooks:
                tensor._backward_hooks = None
        self._placed.clear()
