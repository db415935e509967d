"""The backwards of one step: which are under way, which count, and whose gradients an optimizer has used.

A **task** is one run of the autograd engine. It counts if it changed a gradient of the watched parameters, so that
`autograd.grad` probes leave no trace. A **nested backward** (one that is run by a hook, or by the backward of an
autograd function) is a part of the outermost one: gradients of parameters are read when that has ended. Where the
outermost one is noticed only after backwards inside it have ended, each of these counts by itself, and so does the
outermost one.

Gradients that were thrown away before an optimizer has used them (a skipped step) void the backwards that made them.

Belongs here: what follows from the gradients of parameters and their versions. Does not: rows and passes (`passes`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any

from torch import Tensor, nn


class Ended(Enum):
    """What a backward was that has ended."""

    UNKNOWN = 1
    """It was never noticed, or belongs to an earlier step."""
    NESTED = 2
    """A part of one that goes on."""
    PROBE = 3
    """It changed no gradient of a parameter."""
    COUNTS = 4


class Tasks:
    """The runs of the autograd engine in the step under way."""

    def __init__(self) -> None:
        self.use((), attrgetter("grad"))
        self.committed: set[int] = set()
        """Those that have ended and count."""
        self.num_thrown_away = 0
        """How often gradients were thrown away that no optimizer had used, since the last `take_thrown_away`."""
        self._open: dict[int, list[int | None] | None] = {}
        """Those under way, outermost first, with the versions of all gradients when each was noticed; None where a task
        counts whatever becomes of the gradients."""
        self._used: set[int] = set()
        """Those whose gradients an optimizer of this step has used: to throw these away voids nothing."""
        self._left: list[tuple[nn.Parameter, int]] = []
        """The versions of some gradients when the last counting backward had ended."""

    def use(self, parameters: Sequence[nn.Parameter], gradient_of: Callable[[nn.Parameter], Any]) -> None:
        """These are the model's parameters now, and this is how their gradients are found (`sharded`)."""
        self.parameters = parameters
        self._gradient_of = gradient_of
        self._no_gradients: list[int | None] = [None] * len(parameters)
        self._sample = parameters[:: max(1, len(parameters) // 16)]

    def start(self) -> None:
        """A step begins."""
        self._open.clear()
        self._left = []
        self.committed.clear()
        self._used.clear()

    @property
    def open(self) -> Collection[int]:
        """The tasks under way, outermost first."""
        return self._open.keys()

    def is_open(self, task: int) -> bool:
        """Whether a task has been noticed and not ended yet."""
        return task in self._open

    def outermost(self) -> int:
        """The task under way that all others are a part of."""
        return next(iter(self._open))

    def unused(self) -> set[int]:
        """The tasks that count and whose gradients no optimizer has used yet."""
        return self.committed - self._used

    def begin(self, task: int, noticed_by: nn.Parameter | None = None) -> set[int]:
        """A task is noticed for the first time; gives the earlier ones whose gradients were thrown away since.

        Args:
            task: its id.
            noticed_by: a parameter whose gradient is there already, where that was the first sign of the task.
        """
        gradients = list(map(self._gradient_of, self.parameters))
        void: set[int] = set()
        if not self._open and self._were_thrown_away(gradients, noticed_by) and (void := self.unused()):
            self.committed -= void
            self.num_thrown_away += 1
            self._left = []
        some = any(gradient is not None for gradient in gradients)
        self._open[task] = [g if g is None else g._version for g in gradients] if some else self._no_gradients
        if self.committed and max(self.committed) > task:
            self._open[task] = None  # it began before one that has ended: that was a part of it
        return void

    def count_anyway(self, task: int) -> None:
        """A task under way counts, whatever the gradients look like at its end."""
        self._open[task] = None

    def end(self, task: int) -> Ended:
        """A task has ended."""
        if task not in self._open:
            return Ended.UNKNOWN
        before = self._open.pop(task)
        if self._open:
            return Ended.NESTED
        if before is not None and not self._has_changed_since(before):
            return Ended.PROBE
        self.committed.add(task)
        self._left = [(p, gradient._version) for p in self._sample if (gradient := self._gradient_of(p)) is not None]
        return Ended.COUNTS

    def forget_open(self) -> None:
        """No backward is under way: one that raised has never ended."""
        self._open.clear()

    def mark_used(self) -> None:
        """An optimizer has used the gradients that there are."""
        self._used |= self.committed

    def take_thrown_away(self) -> int:
        """How often gradients were thrown away since this was asked for last."""
        number, self.num_thrown_away = self.num_thrown_away, 0
        return number

    def are_gone(self) -> bool:
        """Whether the backward that has just ended has left no gradient at all."""
        return not self._left and not any(self._gradient_of(p) is not None for p in self.parameters)

    def _has_changed_since(self, before: list[int | None]) -> bool:
        """Whether the gradient of any parameter has changed; the first one tells, nearly always."""
        for p, version in zip(self.parameters, before, strict=True):
            gradient = self._gradient_of(p)
            if (None if gradient is None else gradient._version) != version:
                return True
        return False

    def _were_thrown_away(self, gradients: Sequence[Tensor | None], noticed_by: nn.Parameter | None) -> bool:
        """Whether the gradients of the backwards before are gone: set to None, or all written to in place since then.

        The latter is what `zero_grad(set_to_none=False)` does, as far as some of them tell. A parameter that noticed
        the backward has its gradient already: only what it has been added to tells that it was there before.
        """
        if self.committed <= self._used:
            return False
        before = {id(p): version for p, version in self._left}
        there = sum(gradient is not None for gradient in gradients)
        if noticed_by is not None:
            there -= not _was_added_to(self._gradient_of(noticed_by), before.get(id(noticed_by)))
        same = any((g := self._gradient_of(p)) is not None and g._version == version for p, version in self._left)
        return there <= 0 or (bool(self._left) and not same and there > (noticed_by is not None))


def _was_added_to(gradient: Tensor | None, version: Any) -> bool:
    """Whether a gradient is one that has been there, with a further one added to it in place."""
    return gradient is not None and isinstance(version, int) and gradient._version > version
