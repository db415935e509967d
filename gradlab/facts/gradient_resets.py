"""Whether the gradients of an optimizer are reset between its steps, parameter by parameter.

A gradient was reset where it became None, another tensor, or was written to outside of a backward: zeroed, scaled, or
whatever else somebody does on purpose. One that nobody has touched still is in what the next step uses.

Belongs here: watching gradients by weak references and version counters. Does not: the optimizer itself
(`optimizer_facts`).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradlab.facts.numbers import Numbers
from gradlab.hooks.interpreter import without_torch_function

MOST_CHECKED = 64
"""Of so many parameters of an optimizer it is asked, evenly spaced."""
UNTIL = 60
"""For so many steps."""
LAST = 8
FEWEST = 3
"""A parameter counts as not reset where that was so before so many of its last eight steps."""
_MOST_NORMS = 3


class _Watched:
    """One parameter: its gradient as it was last seen, and what became of it since the step before."""

    __slots__ = ("gradient", "has_grown", "is_reset", "parameter", "seen", "version")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = weakref.ref(parameter)
        self.gradient: weakref.ref[Any] | None = None
        self.version = 0
        self.is_reset = True
        self.has_grown = False
        """Whether a backward has added to it since the step before."""
        self.seen: deque[bool] = deque(maxlen=LAST)
        """Of its last steps: whether gradients had not been reset before it."""

    def gradient_now(self) -> Tensor | None:
        """Its gradient, None where there is none."""
        p = self.parameter()
        return p.grad if p is not None and p.is_leaf else None

    def is_untouched(self) -> bool:
        """Whether the gradient is the one that was seen last, and nothing was written to it."""
        known: Tensor | None = self.gradient() if self.gradient is not None else None
        return known is not None and self.gradient_now() is known and known._version == self.version

    def note(self) -> bool:
        """Remember the gradient; whether there is one."""
        now = self.gradient_now()
        self.gradient = None if now is None else weakref.ref(now)
        self.version = 0 if now is None else now._version
        return now is not None


class GradientResets:
    """Watches the gradients of some parameters from one step of their optimizer to the next."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        stride = max(1, -(-len(parameters) // MOST_CHECKED))
        self._watched = [_Watched(p) for p in parameters[::stride]]
        self.was_written_to = False
        """Whether gradients were written to between the last backward and the last step, as by clipping."""
        self.num_steps = 0
        """Between how many steps it was asked."""
        self._norms = Numbers()
        self._num_norms = 0
        self._suspects: list[tuple[_Watched, Tensor]] = []

    def before_backward(self) -> None:
        """A backward is about to add to gradients."""
        with without_torch_function():
            for one in self._watched:
                if not one.is_reset and not one.is_untouched():
                    one.is_reset = True
            self._compare()

    def after_backward(self) -> None:
        """A backward has added to them."""
        with without_torch_function():
            for one in self._watched:
                is_untouched = one.is_untouched()
                if one.note() and not is_untouched:
                    one.has_grown = True

    def before_update(self) -> None:
        """The optimizer is about to use them."""
        with without_torch_function():
            self.was_written_to = any(one.gradient is not None and not one.is_untouched() for one in self._watched)

    def after_update(self) -> None:
        """The optimizer has used them."""
        with without_torch_function():
            self.num_steps += 1
            for one in self._watched:
                if one.has_grown:
                    one.seen.append(not one.is_reset)
                one.has_grown = False
                one.is_reset = not one.note()
            if self._num_norms < _MOST_NORMS:
                self._suspects = [(one, _norm(g)) for one in self._unreset(1)[:2] if _is_plain(g := one.gradient_now())]

    @property
    def not_reset(self) -> tuple[Tensor, ...]:
        """The parameters whose gradients are not reset, as far as the numbers say that they are still the same.

        `p.grad.data.zero_()` writes to a gradient behind the back of its version counter.
        """
        found = self._unreset(FEWEST)
        if not found or self._num_norms == 0:
            return ()
        if not self._norms.done() or not all(was == now > 0 for was, now in self._norms.values().values()):
            return ()
        return tuple(p for one in found if (p := one.parameter()) is not None)

    @property
    def were_reset(self) -> tuple[Tensor, ...]:
        """The other parameters, as far as they had gradients."""
        return tuple(
            p for one in self._watched if one.seen and not sum(one.seen) and (p := one.parameter()) is not None
        )

    @property
    def num_not_reset(self) -> int:
        """Before how many of the last eight steps the gradients of one parameter at least were not reset."""
        return max((sum(one.seen) for one in self._watched), default=0)

    def _unreset(self, fewest: int) -> list[_Watched]:
        return [one for one in self._watched if sum(one.seen) >= fewest]

    def _compare(self) -> None:
        """Note what the suspects' gradients are now, beside what they were after the step."""
        for one, was in self._suspects:
            now = one.gradient_now()
            if not one.is_reset and _is_plain(now):
                self._norms.add(self._num_norms, torch.stack([was, _norm(now)]))
                self._num_norms += 1
        if self._suspects:
            self._norms.send()
            self._suspects = []


def _is_plain(gradient: Any) -> bool:
    return type(gradient) is Tensor and gradient.layout == torch.strided and gradient.numel() > 0


def _norm(gradient: Any) -> Tensor:
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32  # torch narrows no input
    return torch.linalg.vector_norm(gradient.detach(), dtype=wide)
