"""Opener: which step begins a window, and why: the schedule, a step out of the ordinary, a finding, a request.

Belongs here: every reason for a window and every reason against one. Does not: the window itself (window.py).
"""

from __future__ import annotations

import logging
from pathlib import Path

from gradlab.profiling.budget import Budget
from gradlab.profiling.options import Profile, Reason, Trigger, Turn
from gradlab.profiling.requests import Inbox, ask_ranks
from gradlab.profiling.watch import StepWatch

_log = logging.getLogger("gradlab")


class Opener:
    """Decides for one process of a run, from what it is told of steps, when a window begins.

    Cost: a microsecond a step.
    """

    def __init__(self, options: Profile, folder: Path, *, rank: int, world_size: int) -> None:
        self.budget = Budget(options)
        self.position = 0
        """Of the running step in the schedule."""
        self.trigger = options.trigger or Trigger()
        self._options = options
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._watch = StepWatch(self.trigger)
        self._inbox = Inbox(folder, rank=rank, world_size=world_size)
        self._asked: Reason | None = None
        self._step_seconds = 0.0  # of an ordinary step, smoothed
        self._told: set[str] = set()

    def ask(self, reason: Reason) -> None:
        """There is a reason for a window. With several ranks, that of rank zero counts for all."""
        if self._world_size == 1:
            self._asked = reason
        elif self._rank == 0:
            ask_ranks(self._folder, reason, active=self._options.active)

    def look(self, step: int, seconds: float, data_seconds: float) -> None:
        """An undisturbed step is over: was it out of the ordinary?"""
        self._step_seconds = seconds if not self._step_seconds else 0.9 * self._step_seconds + 0.1 * seconds
        if self._options.trigger is not None:
            reason = self._watch.look(step, seconds, data_seconds)
            if reason is not None:
                self.ask(reason)

    def due(self, step: int) -> Turn | None:
        """The window that begins with `step`, the one that is about to run, if any."""
        turn = self._next(step)
        if turn is None:
            return None
        self._asked = None
        refusal = self.budget.refusal(turn.reason)
        if not refusal:
            return turn
        self.answer(turn, error=f"no window: {refusal}.")
        if refusal not in self._told:
            self._told.add(refusal)
            _log.info("a profile window (%s) was left out: %s", turn.reason.kind, refusal)
        return None

    def step_ended(self, *, seen: bool) -> None:
        """A step is over; where it was not seen from its beginning, a window that should begin with it still can."""
        if seen or not self._options.starts(self.position):
            self.position += 1

    def cut_short(self) -> None:
        """A window ended before its time: the schedule goes on with its next turn."""
        self.position = self._options.after_window(self.position)

    def answer(self, turn: Turn, **answer: str) -> None:
        """Say what has become of a window, to whoever asked for it."""
        if turn.request:
            self._inbox.answer(turn.request, **answer)

    def waits_in_vain(self) -> str:
        """A sentence where a schedule was set up and no step of its first window has run; "" otherwise."""
        first = self._options.wait + self._options.warmup
        if self.position > first or not self._options.num_windows:
            return ""
        steps = "1 step" if self.position == 1 else f"{self.position} steps"
        return (
            f"no profile was recorded: training ended after {steps}, and the first window begins after {first} "
            f"(wait={self._options.wait}, warmup={self._options.warmup})."
        )

    def _next(self, step: int) -> Turn | None:
        warmup, active = self._options.warmup, self._options.active
        request = self._inbox.due(step, self._step_seconds)
        if request is not None:
            return Turn(reason=request.reason, warmup=warmup, active=request.active, request=request.id)
        if self._options.starts(self.position):
            return Turn(reason=Reason("schedule"), warmup=warmup, active=active)
        if self._asked is not None:
            return Turn(reason=self._asked, warmup=warmup, active=active)
        return None
