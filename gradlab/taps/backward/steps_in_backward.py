"""Optimizers that step inside the backward pass, one a parameter, by a post-accumulate-grad hook each.

That saves the memory of the gradients: each is gone as soon as its parameter is updated. So a parameter is read by
itself, just before and after the step of its optimizer, and the step ends with the backward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradlab.optimizers import parameter_ids, parameters_of
from gradlab.taps.backward.parameters import ParameterWatch, local
from gradlab.taps.buffer.rows import Row


class StepsInBackward:
    """What the optimizers of one model do in the backward under way."""

    def __init__(self) -> None:
        self.stepped: set[int] = set()
        """Ids of the parameters that have been updated."""
        self._before: dict[int, Tensor] = {}

    def before(self, optimizer: Optimizer, watch: ParameterWatch, row: Row) -> None:
        """An optimizer is about to step: its parameters have their gradients, and nobody else's."""
        mine = parameter_ids([optimizer])
        self.stepped |= mine
        for quantity in (watch.final, watch.clipped):
            _write(row, quantity, mine, lambda p: p.grad)
        _write(row, watch.weight, mine, lambda p: p.detach())
        for p in watch.update.parameters:
            if id(p) in mine:
                self._before[id(p)] = local(p.detach()).clone()

    def after(self, optimizer: Optimizer, watch: ParameterWatch, row: Row) -> None:
        """It has stepped."""
        mine = parameter_ids([optimizer]) & self._before.keys()
        _write(row, watch.update, mine, lambda p: local(p.detach()) - self._before.pop(id(p)))

    def backward_ended(self, watch: ParameterWatch, row: Row) -> None:
        """The gradients of those parameters that nobody has updated yet."""
        others = {id(p) for p in watch.final.parameters} - self.stepped
        _write(row, watch.final, others, lambda p: p.grad)

    def is_all(self, optimizers: tuple[Optimizer, ...]) -> bool:
        """Whether the step ends here: no gradient waits for an optimizer that steps later."""
        return all(p.grad is None or id(p) in self.stepped for one in optimizers for p in parameters_of(one))


def _write(row: Row, quantity: Any, wanted: set[int], value: Any) -> None:
    mine = [(e, p) for e, p in zip(quantity.entries, quantity.parameters, strict=True) if id(p) in wanted]
    quantity.write_some(row, [(entry, local(tensor)) for entry, p in mine if (tensor := value(p)) is not None])
