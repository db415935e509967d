"""Which engine computes a Jacobian: the fastest that works on this graph and passes its audit; else the next.

Belongs here: the table of engines, their order, and what is remembered of those that failed. Does not: the audit, and
the loop that tries (`measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradlab.errors import JacobianError, did_you_mean
from gradlab.jacobians.engines.columns import columns, forward_columns
from gradlab.jacobians.engines.outer_product import by_outer_products
from gradlab.jacobians.engines.problem import Problem
from gradlab.jacobians.engines.rows import by_batched_grad, by_loop, by_vmap, rows

ENGINES: dict[str, Callable[[Problem], Tensor]] = {
    "rank": partial(by_outer_products, vjp=by_vmap),
    "columns": partial(columns, vjp=by_vmap),
    "columns_math": partial(columns, vjp=by_vmap),
    "forward": forward_columns,
    "vmap": partial(rows, vjp=by_vmap),
    "is_grads_batched": partial(rows, vjp=by_batched_grad),
    "loop": partial(rows, vjp=by_loop),
}
"""From the first that is tried to the one that always works. `columns_math` and `forward` need a forward under
`plain_kernels`."""

DIFFERENCES = "differences"
"""What is left where no backward works at all: no engine on a graph."""
NAMES = (*ENGINES, DIFFERENCES)


class Fallback:
    """The engines that are left to try: begins with the fastest, goes on to the next where one fails, and never back.

    Kept from one measurement of a slice to the next, so that an engine that fails is tried once.
    """

    def __init__(self, wanted: str = "auto") -> None:
        """Take `auto`, or the name of the only engine to try.

        Raises:
            JacobianError: if there is no such engine.
        """
        if wanted != "auto" and wanted not in NAMES:
            raise JacobianError(
                f"engine={wanted!r} is no engine.{did_you_mean(wanted, NAMES)} There are: auto, {', '.join(NAMES)}."
            )
        self.wanted = wanted
        self.engines = [wanted] if wanted != "auto" else []
        """What is left, the engine in use first; empty before a problem has been seen."""
        self.coupled: bool | None = None
        """Whether samples influence one another; None where that is not known."""
        self.widest_bytes: int | None = None
        """Size of the largest tensor between the two ends, once they have all been seen."""
        self.most_rows: int | None = None
        """How many rows fit in memory at once, where that is known from a failure."""
        self.notes: list[str] = []
        """For people: which engines were given up and why."""

    @property
    def engine(self) -> str:
        """The engine in use, or "" before the first problem has been seen."""
        return self.engines[0] if self.engines else ""

    @property
    def is_last(self) -> bool:
        """Whether no other engine is left."""
        return len(self.engines) == 1

    def choose_engines(self, problem: Problem) -> None:
        """Choose the engines that suit a problem, the first time one is seen."""
        if self.engines:
            return
        batched = ["vmap", "is_grads_batched"] if min(problem.chunk, len(problem.vectors)) > 1 else []
        # A batch of one row costs twice a plain backward.
        rank = ["rank"] if problem.layer is not None else []
        tall = ["columns", "columns_math", *(["forward"] if problem.run else [])] if problem.is_tall else []
        self.engines = [*rank, *tall, *batched, "loop"]

    def solve(self, problem: Problem) -> Tensor:
        """[blocks, rows, cols] by the engine in use, with half the rows at once as often as memory does not suffice."""
        chunk = min(problem.chunk, self.most_rows or problem.chunk)
        while True:
            try:
                return ENGINES[self.engine](replace(problem, chunk=chunk) if chunk != problem.chunk else problem)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if chunk == 1:
                    raise JacobianError(
                        f"memory does not suffice for one row of this Jacobian ({len(problem.cols)} columns, "
                        f"{len(problem.samples)} samples); give fewer samples, or sites that lie closer. {error}"
                    ) from error
            chunk = self.most_rows = max(1, min(chunk, len(problem.vectors)) // 2)
            _release_cached_memory()

    def give_up(self, reason: str | BaseException) -> None:
        """Give up the engine in use for the next one, and note why.

        Raises:
            JacobianError: if it was the last one.
        """
        if isinstance(reason, BaseException):
            line = next(iter(str(reason).splitlines()), "")
            reason = f"{type(reason).__name__}: {line[:160]}"
        if self.is_last:
            raise JacobianError(f"engine {self.engine!r} cannot compute this Jacobian. {reason}")
        self.notes.append(f"{self.engines.pop(0)} refused: {reason}")

    def only_differences(self, reason: str) -> None:
        """Give up all engines on a graph, of which none is possible."""
        self.engines = [DIFFERENCES]
        self.notes.append(f"central differences, right to about three digits, since {reason}")

    def forward_kernels(self) -> AbstractContextManager[None]:
        """The kernels that the forward has to use for the engine in use."""
        return plain_kernels() if self.engine in ("columns_math", "forward") else nullcontext()


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and recurrent layers from operations whose backward is differentiable, as the fused ones' is not."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False), _without_mkldnn():
        yield


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    # `torch.backends.mkldnn.flags` does this and warns of a missing Intel GPU.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of memory, on whichever device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _release_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
