"""Backwards without a step: what was given as an optimizer, what has stepped instead, in a sentence for a person.

A loop may accumulate gradients for as long as it likes, or look at them and never step. So the sentence needs a sign
that the parameters are trained nevertheless: they have changed, or gradients were thrown away, as before each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradlab.errors import warn

MOST_BACKWARDS = 100
"""After so many backwards without a step it is said."""
_SAMPLE = 16


class Unstepped:
    """Counts backwards since the last step, and says once that none comes."""

    def __init__(self, given: Sequence[str]) -> None:
        """Args: given: the class names of the optimizers that were given."""
        self._given = list(dict.fromkeys(given))
        self._others: dict[str, str] = {}
        self._idle = ""
        self._num_backwards = 0
        self._has_stepped = False
        self._leaves_traces = False
        self._is_said = False
        self._sample: list[Tensor] = []
        self._versions: list[int] = []

    def stranger(self, optimizer: Any, *, owns_some: bool) -> None:
        """An optimizer has stepped that is not counted."""
        why = "whose parameters no given optimizer owns" if owns_some else "which owns none of the model's parameters"
        self._others.setdefault(type(optimizer).__name__, why)

    def idle(self, optimizer: Any) -> None:
        """An optimizer that is counted has stepped, and found no gradient."""
        self._idle = type(optimizer).__name__
        self._leaves_traces |= self._num_backwards > 0

    def missed(self) -> None:
        """The loop has counted a step that nobody was seen to make."""
        self._leaves_traces |= self._num_backwards > 0

    def stepped(self) -> None:
        """A step has been counted."""
        self._idle = ""
        self._has_stepped = True
        self._num_backwards = 0
        self._leaves_traces = False
        self._sample = []

    def backward_ended(self, parameters: Sequence[Tensor], *, leaves_traces: bool) -> None:
        """A backward through the model has ended."""
        self._num_backwards += 1
        self._leaves_traces |= leaves_traces
        if not self._is_said and self._num_backwards == 2:  # a step that is counted comes after one, nearly always
            self._sample = list(parameters[:: max(1, len(parameters) // _SAMPLE)])
            self._versions = [p._version for p in self._sample]
        if self._num_backwards >= MOST_BACKWARDS:
            self._say()

    def closing(self) -> None:
        """The monitor lets go: say so too where not one step was counted."""
        if not self._has_stepped:
            self._say()

    def _have_changed(self) -> bool:
        return [p._version for p in self._sample] != self._versions

    def _say(self) -> None:
        changed = self._have_changed()
        if self._is_said or not (changed or self._leaves_traces):
            return
        self._is_said = True
        warn(f"{self._num_backwards} backward passes have ended without a step to count: {self._what()}. {_REMEDY}")

    def _what(self) -> str:
        if self._idle:
            return f"{self._idle} has stepped, and has found no gradient to use"
        given = " and ".join(self._given)
        who = (
            f"{given}, which was given, has not been seen to step"
            if given
            else "no optimizer of torch.optim that owns the model's parameters has stepped"
        )
        others = [f"{name} has stepped, {why}" for name, why in self._others.items()]
        return ", ".join([who, *others])


_REMEDY = "Put the update into `with monitor.stepping():` of the monitor that gradlab.watch gives, and it is counted."
