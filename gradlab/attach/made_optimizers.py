"""The optimizers that a script has made: when, where, and which of them wait for their model.

Belongs here: noticing each new optimizer, and what a line for people calls it. Does not: finding its model
(`model_search`), and what becomes of it then (`watching`).
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

import gradlab
from gradlab.attach.module_hooks import ModuleAges
from gradlab.identity import WeakIdentityDict


@dataclass(frozen=True)
class _Made:
    """When and where a script has made an optimizer."""

    moment: int
    """By the ages of modules."""
    place: str
    """`train.py, line 12`; "" where it was not the script's own."""


class MadeOptimizers:
    """Every optimizer of torch's that is made from `install` on; held weakly.

    Args:
        on_made: called after each.
    """

    def __init__(self, on_made: Callable[[], None]) -> None:
        self.ages = ModuleAges()
        """When modules are built, from the first optimizer on."""
        self._on_made = on_made
        self._made: WeakIdentityDict = WeakIdentityDict()
        self._waiting: list[weakref.ref[Optimizer]] = []
        """Those that were made, and whose model has not been called since."""
        self._settled: WeakIdentityDict = WeakIdentityDict()
        """Those whose model is watched, or of which is known that it cannot be."""

    def install(self) -> None:
        """Notice optimizers that are made from now on."""
        make = Optimizer.__init__

        @functools.wraps(make)
        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            make(optimizer, *args, **kwargs)
            self.ages.install()
            self._made[optimizer] = _Made(self.ages.now, _place_in_script())
            self._waiting.append(weakref.ref(optimizer))
            self._on_made()

        Optimizer.__init__ = __init__  # type: ignore[assignment, method-assign]

    def waiting(self) -> list[Optimizer]:
        """Those that are still there and wait for their model."""
        waiting = [one for ref in self._waiting if (one := ref()) is not None]
        return [one for one in waiting if one not in self._settled]

    def forget_settled(self) -> bool:
        """Drop from the list those that wait no longer; whether any is left."""
        self._waiting = [weakref.ref(one) for one in self.waiting()]
        return bool(self._waiting)

    def settle(self, optimizers: Sequence[Optimizer]) -> None:
        """These wait no longer: their model is watched, or cannot be."""
        for one in optimizers:
            self._settled[one] = True

    def is_settled(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer waits no longer."""
        return optimizer in self._settled

    def moment_of(self, optimizer: Optimizer) -> int:
        """When an optimizer was made, by the ages of modules."""
        made = self._made.get(optimizer)
        return self.ages.now if made is None else made.moment

    def clear(self) -> None:
        """In a child made by fork: none of the parent's is of interest."""
        self._waiting = []
        self._settled = WeakIdentityDict()

    def describe_model(self, optimizers: Sequence[Optimizer]) -> str:
        """What a line calls the model of some optimizers: by their classes, and where the script has made them."""
        names = dict.fromkeys(type(one).__name__ for one in optimizers)
        made = [self._made.get(one) for one in optimizers]
        places = dict.fromkeys(one.place for one in made if one is not None and one.place)
        return f"the model of {' and '.join(names)}" + (f" (made in {' and '.join(places)})" if places else "")


def _place_in_script() -> str:
    """The line of the script, outside of torch and gradlab, that makes an optimizer."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_SCRIPT):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno}"


_NOT_THE_SCRIPT = tuple(os.path.dirname(one.__file__ or "-") + os.sep for one in (torch, gradlab))
