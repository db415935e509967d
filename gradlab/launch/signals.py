"""SIGTERM, SIGINT and findings as a wish to stop: the step is finished, a checkpoint is saved, then the run ends.

Lightning answers SIGINT with `sys.exit(1)` and knows no optimizer steps, so the handlers are gradlab's own. They sit in
front of Lightning's SIGTERM handler, which is called only once a step is complete: it is Lightning's own way to leave
the loops after their hooks have run. A second SIGINT does not wait.

Where the signal goes to a whole process group, as from `timeout`, the workers of a loader hear it too. They go on while
the step does (`workers`); one that was not that far yet dies of it, and torch would raise that in the middle of the
step, from a handler of SIGCHLD. So from the first signal on no child's end raises anything: what ends a run then is
that no batch comes (`Continuation.failed`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from gradlab.finding import Finding

_WATCHED = (signal.SIGTERM, signal.SIGINT)


class RunStopped(Exception):
    """The run was asked to stop at a place where nothing has to be finished first."""


STOPS = (RunStopped, SIGTERMException)
"""What `trainer.fit` raises once a run has stopped as asked."""


class StopRequest:
    """Holds the handlers for the time of a `with` block; `received` is the first signal that came."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once = False
        """Whether a second SIGINT came, which waits for nothing."""
        self.finding: Finding | None = None
        """What was found, where that is what stops the run."""
        self.training = False
        """Whether there is a step to be finished first."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in _WATCHED}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    @property
    def is_made(self) -> bool:
        """Whether the run is to stop."""
        return self.received is not None or self.finding is not None

    def install(self) -> None:
        """Put the handlers in place, again where somebody else has replaced them since."""
        self._set(dict.fromkeys(_WATCHED, self._handle))

    def _set(self, handlers: dict[signal.Signals, Any]) -> None:
        """Python allows handlers in the main thread alone; elsewhere the run cannot be stopped by signals."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                self.at_once = True
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        self._before[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
        self._set({signal.SIGCHLD: _say_nothing})
        if not self.training:
            raise RunStopped


def _say_nothing(number: int, frame: FrameType | None) -> None:
    """A child has ended."""


class StopAfterStep(pl.Callback):
    """Leaves the training loop after the optimizer step during which a stop was requested."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self._leave_loops: Callable[[int, FrameType | None], Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the place of the handler that Lightning has registered by now; from here on steps are finished first."""
        handler = signal.getsignal(signal.SIGTERM)
        self._leave_loops = handler if callable(handler) else None
        self.request.install()
        self.request.training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Tensor | Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask Lightning to leave after the hooks of this batch, unless it is in the middle of an accumulation."""
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if self.request.is_made and complete and self._leave_loops:
            self._leave_loops(signal.SIGTERM, None)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Cut a validation short: no step is under way."""
        if self.request.is_made and not trainer.sanity_checking:
            raise RunStopped

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to be finished."""
        self.request.training = False
