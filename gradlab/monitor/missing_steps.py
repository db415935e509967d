"""The warning that backwards end and no step comes: what was given as an optimizer, and what has stepped instead.

A loop may accumulate gradients for as long as it likes, or look at them and never step. So the warning needs a sign
that the parameters are trained nevertheless: they have changed, or gradients were thrown away, as before each step.
Not here: which steps are counted (`steps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradlab.errors import warn

MOST_BACKWARDS = 100
"""After so many backwards without a step comes the warning."""
_SAMPLE = 16
"""So many of the parameters are looked at for whether they have changed."""


class MissingSteps:
    """Counts backwards since the last step, and warns once where none comes."""

    def __init__(self, given: Sequence[str]) -> None:
        """Args: given: the class names of the optimizers that were given."""
        self._given = list(dict.fromkeys(given))
        self._others: dict[str, str] = {}
        self._without_gradient = ""
        self._num_backwards = 0
        self._has_stepped = False
        self._leaves_traces = False
        self._has_warned = False
        self._sample: list[Tensor] = []
        self._versions: list[int] = []

    def other_stepped(self, optimizer: Any, *, owns_some: bool) -> None:
        """An optimizer has stepped that is not counted."""
        why = "whose parameters no given optimizer owns" if owns_some else "which owns none of the model's parameters"
        self._others.setdefault(type(optimizer).__name__, why)

    def stepped_without_gradient(self, optimizer: Any) -> None:
        """An optimizer that is counted has stepped, and found no gradient."""
        self._without_gradient = type(optimizer).__name__
        self._leaves_traces |= self._num_backwards > 0

    def step_missed(self) -> None:
        """The loop has counted a step that no optimizer was seen to make."""
        self._leaves_traces |= self._num_backwards > 0

    def stepped(self) -> None:
        """A step has been counted."""
        self._without_gradient = ""
        self._has_stepped = True
        self._num_backwards = 0
        self._leaves_traces = False
        self._sample = []

    def backward_ended(self, parameters: Sequence[Tensor], *, leaves_traces: bool) -> None:
        """A backward through the model has ended."""
        self._num_backwards += 1
        self._leaves_traces |= leaves_traces
        if not self._has_warned and self._num_backwards == 2:  # a step that is counted comes after one, nearly always
            self._sample = list(parameters[:: max(1, len(parameters) // _SAMPLE)])
            self._versions = [p._version for p in self._sample]
        if self._num_backwards >= MOST_BACKWARDS:
            self._warn()

    def closing(self) -> None:
        """The monitor lets go: warn too where not one step was counted."""
        if not self._has_stepped:
            self._warn()

    def _have_changed(self) -> bool:
        return [p._version for p in self._sample] != self._versions

    def _warn(self) -> None:
        changed = self._have_changed()
        if self._has_warned or not (changed or self._leaves_traces):
            return
        self._has_warned = True
        warn(f"{self._num_backwards} backward passes have ended without a step to count: {self._what()}. {_REMEDY}")

    def _what(self) -> str:
        if self._without_gradient:
            return f"{self._without_gradient} has stepped, and has found no gradient to use"
        given = " and ".join(self._given)
        who = (
            f"{given}, which was given, has not been seen to step"
            if given
            else "no optimizer of torch.optim that owns the model's parameters has stepped"
        )
        others = [f"{name} has stepped, {why}" for name, why in self._others.items()]
        return ", ".join([who, *others])


_REMEDY = "Put the update into `with monitor.stepping():` of the monitor that gradlab.watch gives, and it is counted."
