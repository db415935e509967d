"""The parameters' side of a step: gradients when the backward has ended, weights and clipped gradients before the
update, the update itself after it. Nothing of it runs inside the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradlab.errors import GradlabWarning
from gradlab.taps.gather import Grouping
from gradlab.taps.plan import Plan
from gradlab.taps.slots import NORM_IN_ONE, Entry, Row


class ParameterWatch:
    """Reads the parameters of one model under one plan."""

    def __init__(self, parameters: dict[str, nn.Parameter], plan: Plan) -> None:
        parameters = _whole(parameters)
        self.final = _Quantity(parameters, plan, "weight_grad")
        self.clipped = _Quantity(parameters, plan, "weight_grad", "clipped")
        self.weight = _Quantity(parameters, plan, "weight")
        self.update = _Quantity(parameters, plan, "update")
        self.micro = _Quantity(parameters, plan, "weight_grad", "micro")
        self._before: list[Tensor] = []
        self._begun = False
        self._handles: list[RemovableHandle] = []

    def arm(self, row: Callable[[], Row]) -> None:
        """Wait for the gradient of each backward by itself; `row` gives the row of the backward under way."""

        def writer(entry: Entry) -> Callable[[Tensor], None]:
            return lambda gradient: row().write(entry, gradient)

        if not self._handles:
            pairs = zip(self.micro.entries, self.micro.parameters, strict=True)
            self._handles = [p.register_hook(writer(entry)) for entry, p in pairs if p.requires_grad]

    def disarm(self) -> None:
        """No longer wait."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def backward_ended(self, row: Row) -> None:
        """All gradients of a backward are accumulated and reduced, none is clipped yet."""
        self.final.write(row, [p.grad for p in self.final.parameters])

    def before_update(self, row: Row) -> None:
        """An optimizer is about to step: the first of this step, or another, or once more within a closure."""
        self.clipped.write(row, [p.grad for p in self.clipped.parameters])
        if not self._begun:
            self._begun = True
            self.weight.write(row, [p.detach() for p in self.weight.parameters])
            # One copy of the watched weights, alive from the first update of a step to its end.
            self._before = [p.detach().clone() for p in self.update.parameters]

    def after_update(self, row: Row) -> None:
        """An optimizer has stepped: the update so far, by all optimizers of this step."""
        if self._before:
            changes = torch._foreach_sub([p.detach() for p in self.update.parameters], self._before)
            self.update.write(row, list(changes))

    def step_ended(self) -> None:
        """All optimizers have stepped."""
        self._before = []
        self._begun = False


def _whole(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters that this rank has as a whole: the norm of a shard must not be shown as that of the whole."""
    sharded = [name for name, p in parameters.items() if hasattr(p, "device_mesh")]
    if sharded:
        warnings.warn(
            f"gradlab: {len(sharded)} parameters are sharded over ranks (DTensor) and not measured, the first of them "
            f"{sharded[0]!r}; the tensors of the forward are.",
            GradlabWarning,
            stacklevel=2,
        )
    return {name: p for name, p in parameters.items() if name not in sharded}


class _Quantity:
    """One quantity of all parameters that a rule chooses, with their slots."""

    def __init__(self, parameters: dict[str, nn.Parameter], plan: Plan, quantity: str, stage: str = "final") -> None:
        found = [(entry, p) for name, p in parameters.items() if (entry := plan.entry(name, quantity, stage))]
        self.entries = [entry for entry, _ in found]
        self.parameters = [p for _, p in found]
        self._numel = [p.numel() for p in self.parameters]
        self._is_plain = all(
            entry.is_norm and p.dtype in NORM_IN_ONE and p.device == found[0][1].device and n > 0
            for (entry, p), n in zip(found, self._numel, strict=True)
        )
        self._grouping = Grouping(self.entries, self.parameters) if found and self._is_plain else None

    def write(self, row: Row, tensors: list[Any]) -> None:
        """Reduce one tensor a parameter into their slots: norms of dense tensors all at once, the rest one by one."""
        if self.entries and not self._write_norms_at_once(row, tensors):
            self._write_one_by_one(row, tensors)

    def _write_norms_at_once(self, row: Row, tensors: list[Any]) -> bool:
        """The usual case, where every parameter has a dense gradient and norms are all that is wanted."""
        if self._grouping is None:
            return False
        try:
            norms = self._grouping.norms(tensors)
        except (TypeError, RuntimeError):
            return False  # a gradient is missing or sparse
        row.grow()
        row.put(self._grouping, norms)
        index = self.entries[0].index
        row.numel[index : index + len(self._numel)] = self._numel
        return True

    def _write_one_by_one(self, row: Row, tensors: list[Any]) -> None:
        batch: list[tuple[Entry, Tensor]] = []
        for entry, tensor in zip(self.entries, tensors, strict=True):
            if tensor is None or tensor.is_meta:
                continue
            if entry.is_norm and tensor.dtype in NORM_IN_ONE and tensor.layout is torch.strided and tensor.numel():
                batch.append((entry, tensor))
            else:
                row.write_now(entry, tensor)
        if batch:
            _write_norms(row, batch)


def _write_norms(row: Row, batch: Sequence[tuple[Entry, Tensor]]) -> None:
    row.grow()
    norms = torch._foreach_norm([tensor for _, tensor in batch], 2, dtype=torch.float32)
    torch._foreach_copy_([row.views[entry.start] for entry, _ in batch], norms)
    for entry, tensor in batch:
        row.numel[entry.index] = tensor.numel()
