"""What a run does about a finding: `diagnose.on_finding`, where an experiment asks for more than a line in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from gradlab.errors import RunError
from gradlab.lightning.callback import GradlabCallback
from gradlab.profiling.window import Reason
from gradlab.runs.folder import RunFolder

_SEVERE = ("warning", "error")


class ActOnFinding(pl.Callback):
    """Acts once, after the step at which the first finding above `info` has become known.

    `checkpoint` saves one beside the last, `profile` records the next three steps, `stop` ends the run with RunError.
    """

    def __init__(self, on_finding: str, gradlab: GradlabCallback, folder: RunFolder) -> None:
        self.on_finding = on_finding
        self.gradlab = gradlab
        self.folder = folder
        self._read = 0
        self._acted = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the findings that are new."""
        if self._acted:
            return
        new, self._read = self.gradlab.findings[self._read :], len(self.gradlab.findings)
        for finding in new:
            if finding.severity in _SEVERE:
                self._acted = True
                self._act(trainer, finding.message)
                return

    def _act(self, trainer: pl.Trainer, message: str) -> None:
        if self.on_finding == "checkpoint":
            trainer.save_checkpoint(self._checkpoint(trainer.global_step))
        elif self.on_finding == "profile" and self.gradlab.profiler is not None:
            self.gradlab.profiler.request_window(Reason("finding", message))
        elif self.on_finding == "stop":
            trainer.save_checkpoint(self._checkpoint(trainer.global_step))
            raise RunError(f"stopped after step {trainer.global_step}, as diagnose.on_finding asks: {message}")

    def _checkpoint(self, step: int) -> Path:
        return self.folder.checkpoints / f"finding-step{step}.ckpt"
