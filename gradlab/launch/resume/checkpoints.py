"""The checkpoint from which a run goes on: when it is written, and how it is checked.

What it holds beyond Lightning's own is in `continuation`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from gradlab.errors import UsageError
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.resume.continuation import Continuation
from gradlab.launch.signals import STOPS


class LastCheckpoint(Checkpoint):
    """Writes one checkpoint file after every epoch and when a stop was requested, over the one before.

    With `watch`, one that cannot be written is reported there and training goes on.
    """

    def __init__(self, path: Path, watch: FolderWatch | None = None) -> None:
        self.path = path
        self._watch = watch
        self._cut_short = False
        self._has_trained = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """There is something to be saved."""
        self._has_trained = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save: an epoch is done."""
        self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A validation that was cut short is done again from its start: its metrics are not in the checkpoint."""
        if self._cut_short:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for counter in (progress["total"], progress["current"]):
                counter.update(ready=1, started=1, processed=0, completed=0)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where the run stops as asked; what fails leaves the last good checkpoint alone.

        So does what stops before a batch was trained on, as in the sanity check: nothing has been done yet, and
        Lightning would take a checkpoint from there for one from the middle of an epoch.
        """
        if isinstance(exception, STOPS) and trainer.optimizers and self._has_trained:
            self._cut_short = trainer.validating
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Continuation):
                callback.save_rank(self.path)
        if self._watch is None:
            trainer.save_checkpoint(self.path)
        elif trainer.world_size > 1 or not self._watch.is_gone:  # Lightning would make the folder anew
            saved = False
            with self._watch.tolerating(f"the checkpoint {self.path}"):
                trainer.save_checkpoint(self.path)
                saved = True
            if not saved:  # where the other ranks wait for this one
                trainer.strategy.barrier("Trainer.save_checkpoint")


def saved_step(path: Path) -> int:
    """The optimizer step of a checkpoint, which is read from end to end before anything relies on it.

    Raises:
        UsageError: where it is damaged. Nothing has been changed then.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        missing = {"state_dict", "loops", "global_step"} - set(content)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is damaged and cannot be read: {reason}. The run was left as it was.") from error
    if missing:
        raise UsageError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}.")
    return int(content["global_step"])
