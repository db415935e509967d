"""What a run does about a finding: `diagnose.on_finding`, where an experiment asks for more than a line in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from gradlab.errors import RunError
from gradlab.lightning.callback import GradlabCallback
from gradlab.profiling.schedule import Profile
from gradlab.profiling.window import Profiler
from gradlab.runs.folder import RunFolder

_SEVERE = ("warning", "error")
_WINDOW = Profile(wait=0, warmup=1, active=3)


class FindingReaction(pl.Callback):
    """Acts once, after the step at which the first finding above `info` has become known.

    `checkpoint` saves one beside the last, `profile` records the next three steps, `stop` ends the run with RunError.
    """

    def __init__(self, on_finding: str, gradlab: GradlabCallback, folder: RunFolder) -> None:
        self.on_finding = on_finding
        self.gradlab = gradlab
        self.folder = folder
        self._read = 0
        self._acted = False
        self._profiler: Profiler | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the findings that are new, or go on with the profile."""
        if self._profiler is not None:
            self._profiler.step()
        if self._acted:
            return
        new, self._read = self.gradlab.findings[self._read :], len(self.gradlab.findings)
        for finding in new:
            if finding.severity in _SEVERE:
                self._acted = True
                self._act(trainer, pl_module, finding.message)
                return

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A step of the profile begins, also after a validation."""
        if self._profiler is not None:
            self._profiler.begin()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No profile window is open in validation."""
        if self._profiler is not None:
            self._profiler.pause()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was recorded."""
        if self._profiler is not None:
            self._profiler.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write what was recorded."""
        if self._profiler is not None:
            self._profiler.close()

    def _act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, message: str) -> None:
        if self.on_finding == "checkpoint":
            trainer.save_checkpoint(self._checkpoint(trainer.global_step))
        elif self.on_finding == "profile":
            self._profiler = Profiler(_WINDOW, self.folder.events / "profile", pl_module, rank=trainer.global_rank)
            self._profiler.begin(trainer.global_step)
        elif self.on_finding == "stop":
            trainer.save_checkpoint(self._checkpoint(trainer.global_step))
            raise RunError(f"stopped after step {trainer.global_step}, as diagnose.on_finding asks: {message}")

    def _checkpoint(self, step: int) -> Path:
        return self.folder.checkpoints / f"finding-step{step}.ckpt"
