"""`.grad` of the training step's hidden tensors that retain it, kept as it is by a Jacobian on the same graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradlab.hooks.interpreter import must_not_record


class RetainGradWatcher(TorchFunctionMode):
    """Notes the tensors on which the forward of one thread calls `retain_grad`, which need not be sites."""

    def __init__(self, noted: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self.noted = noted
        self.depth = 0
        self.thread = get_ident()

    def enter(self) -> None:
        """The model's forward begins, maybe inside itself."""
        if must_not_record() or get_ident() != self.thread:
            return
        if self.depth == 0:
            self.__enter__()  # type: ignore[no-untyped-call]
        self.depth += 1

    def leave(self) -> None:
        """The model's forward ends."""
        if must_not_record() or get_ident() != self.thread:
            return
        if self.depth == 1:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.depth = max(0, self.depth - 1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.retain_grad:
            self.noted.append(weakref.ref(args[0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def retained_grads_kept(tensors: list[weakref.ref[Tensor]]) -> Iterator[None]:
    """While open, a backward may go through tensors that retain their gradient; it is afterwards what it was.

    Otherwise it would be added to, or replaced by a tensor of vmap's.
    """
    retaining = {id(t): t for ref in tensors if (t := ref()) is not None and t.retains_grad}
    kept = [(t, t.grad) for t in retaining.values()]
    for t, _ in kept:
        t.grad = None
    try:
        yield
    finally:
        for t, grad in kept:
            t.grad = grad
