"""The parameters' side of a step: gradients when the backward has ended, weights and clipped gradients before the
update, the update itself after it. Nothing of it runs inside the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gradlab.taps.plan import Plan
from gradlab.taps.slots import Entry, Row


class ParameterWatch:
    """Reads the parameters of one model under one plan."""

    def __init__(self, parameters: dict[str, nn.Parameter], plan: Plan) -> None:
        self.final = _entries(parameters, plan, "weight_grad")
        self.clipped = _entries(parameters, plan, "weight_grad", "clipped")
        self.weight = _entries(parameters, plan, "weight")
        self.update = _entries(parameters, plan, "update")
        self._before: list[Tensor] = []

    def backward_ended(self, row: Row) -> None:
        """All gradients of a backward are accumulated and reduced, none is clipped yet."""
        _write(row, ((entry, p.grad) for entry, p in self.final))

    def before_update(self, row: Row) -> None:
        """The optimizer is about to step."""
        _write(row, ((entry, p.grad) for entry, p in self.clipped))
        _write(row, ((entry, p.detach()) for entry, p in self.weight))
        # One copy of the watched weights, alive only while the optimizer steps; the first, where a closure runs often.
        self._before = self._before or [p.detach().clone() for _, p in self.update]

    def after_update(self, row: Row) -> None:
        """The optimizer has stepped."""
        if self._before:
            after = [p.detach() for _, p in self.update]
            changes = torch._foreach_sub(after, self._before)
            self._before = []
            _write(row, zip((entry for entry, _ in self.update), changes, strict=True))


def _entries(
    parameters: dict[str, nn.Parameter], plan: Plan, quantity: str, stage: str = "final"
) -> list[tuple[Entry, nn.Parameter]]:
    found = ((plan.entry(name, quantity, stage), p) for name, p in parameters.items())
    return [(entry, p) for entry, p in found if entry is not None]


def _write(row: Row, pairs: Iterable[tuple[Entry, Tensor | None]]) -> None:
    """Reduce tensors into their slots: norms of dense tensors all at once, the rest one by one."""
    batch: list[tuple[Entry, Tensor]] = []
    for entry, tensor in pairs:
        if tensor is None or tensor.is_meta:
            continue
        if entry.parts == ("norm",) and tensor.layout == torch.strided and tensor.dtype in _BATCHED and tensor.numel():
            batch.append((entry, tensor))
        else:
            row.write(entry, tensor)
    if batch:
        _write_norms(row, batch)


_BATCHED = frozenset({torch.float32, torch.bfloat16, torch.float16})


def _write_norms(row: Row, batch: Sequence[tuple[Entry, Tensor]]) -> None:
    row.grow(batch[0][1].device)
    norms = torch._foreach_norm([tensor for _, tensor in batch], 2, dtype=torch.float32)
    torch._foreach_copy_([row.views[entry.start] for entry, _ in batch], norms)
    for entry, tensor in batch:
        row.numel[entry.index] = tensor.numel()
