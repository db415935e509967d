"""The phases of a step in Lightning, which names its own actions: nothing has to be hooked.

Every action of the loops runs inside `trainer.profiler.profile(name)`. For the length of a fit a profiler of ours takes
that place and hands everything on to the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.profilers import Profiler

from gradlab.perf.clock import PhaseClock
from gradlab.perf.phases import Phase

_PHASES: tuple[tuple[str, str, Phase], ...] = (
    ("", ".train_dataloader_next", "data"),
    ("[Strategy]", ".batch_to_device", "h2d"),
    ("[Strategy]", ".training_step", "forward"),
    ("[Strategy]", ".backward", "backward"),
    ("[LightningModule]", ".optimizer_step", "optimizer"),
    ("[Callback]", "", "callbacks"),
)
"""How the names of actions begin and end, and what phase they are."""


class PhaseActions(Profiler):
    """Drives `clock` by the actions of `trainer`, from `attach` to `detach`. Cost: half a microsecond an action."""

    def __init__(self, clock: PhaseClock, trainer: pl.Trainer, *, on_error: Callable[[Exception], None]) -> None:
        super().__init__()
        self._on_error = on_error
        self._clock = clock
        self._trainer: Any = trainer
        self._users: Any = getattr(trainer, "profiler")  # noqa: B009  # which has no annotation
        self._phases: dict[str, Phase | None] = {}
        self._backward: Callable[..., Any] | None = None
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Take the place of the user's profiler."""
        self._trainer.profiler = self
        if not self._trainer.lightning_module.automatic_optimization:  # whose backward and step are no actions
            self._backward = self._trainer.strategy.backward
            self._trainer.strategy.backward = self._timed_backward
            for optimizer in self._trainer.optimizers:
                self._handles.append(optimizer.register_step_pre_hook(self._optimizer_begins))
                self._handles.append(optimizer.register_step_post_hook(self._optimizer_ended))

    def detach(self) -> None:
        """Put the user's profiler back. May be called twice."""
        if self._trainer.profiler is self:
            self._trainer.profiler = self._users
        if self._backward is not None:
            del self._trainer.strategy.backward
            self._backward = None
        while self._handles:
            self._handles.pop().remove()

    def start(self, action_name: str) -> None:
        """An action begins."""
        self._users.start(action_name)
        phase = self._phase(action_name)
        if phase is not None:
            self._enter(phase)

    def stop(self, action_name: str) -> None:
        """An action ends."""
        if self._phase(action_name) is not None:
            self._leave()
        self._users.stop(action_name)

    def _enter(self, phase: Phase) -> None:
        try:
            self._clock.enter(phase)
        except Exception as error:
            self._on_error(error)

    def _leave(self) -> None:
        try:
            self._clock.leave()
        except Exception as error:
            self._on_error(error)

    def __getattr__(self, name: str) -> Any:
        if name == "_users":  # of a copy that is not yet filled
            raise AttributeError(name)
        return getattr(self._users, name)

    def _phase(self, action: str) -> Phase | None:
        if action not in self._phases:
            self._phases[action] = _phase_of(action)
        return self._phases[action]

    def _optimizer_begins(self, *_: Any) -> None:
        self._enter("optimizer")

    def _optimizer_ended(self, *_: Any) -> None:
        self._leave()

    def _timed_backward(self, *args: Any, **kwargs: Any) -> Any:
        assert self._backward is not None
        self._enter("backward")
        try:
            return self._backward(*args, **kwargs)
        finally:
            self._leave()


def _phase_of(action: str) -> Phase | None:
    return next((phase for first, last, phase in _PHASES if action.startswith(first) and action.endswith(last)), None)
