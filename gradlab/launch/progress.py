"""Plain progress for pipes and log files: a line an epoch, and one every few seconds where epochs are long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

_INTERVAL_SECONDS = 10.0


class PlainProgress(pl.Callback):
    """Says a line after each epoch and every ten seconds: where it is, how fast, and what a progress bar would show."""

    def __init__(self, say: Callable[[str], None], *, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        self._say = say
        self._interval_seconds = interval_seconds
        self._last_time = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._last_time, self._last_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line where the last one is long ago."""
        if time.monotonic() - self._last_time >= self._interval_seconds:
            self._report(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line for the epoch."""
        self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        """One line. Reading the metrics waits for the device, so this is done rarely."""
        now = time.monotonic()
        speed = (trainer.global_step - self._last_step) / max(now - self._last_time, 1e-9)
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}", f"step {trainer.global_step}", f"{speed:.3g} steps/s"]
        self._say("  ".join(parts + shown_metrics(trainer.progress_bar_metrics)))
        self._last_time, self._last_step = now, trainer.global_step


def shown_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """`name 0.123` for each number."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float | Tensor)}
    return [f"{name} {value:.4g}" for name, value in numbers.items()]
