"""Whether a run folder still takes what a run writes, and what is said where it does not.

A folder can be deleted or moved while a run trains, its disk can fill up or become read-only. An open file keeps taking
bytes then that nobody will ever read. Training goes on: hours of it may still be wanted for what the user's own code
writes. One warning says what is wrong, and the run ends with exit code 1 and that sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from gradlab.errors import EventError
from gradlab.runs.folder import RunFolder

_LOOK_SECONDS = 5.0


class FolderWatch(pl.Callback):
    """Looks at the folder and the files in it every few seconds and after each epoch: two `stat` calls a file."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.problem = ""
        """What is wrong, as a sentence without its full stop; empty while nothing is."""
        self._say = say
        self._files: list[tuple[Path, tuple[int, int], Callable[[], bool]]] = []
        self._due = 0.0
        self.follow(folder.path)

    def follow(self, path: Path, is_closed: Callable[[], bool] = lambda: False) -> None:
        """Look at this file too; `is_closed` says whether it has been given up because a write failed."""
        identity = _identity(path)
        if identity is not None:
            self._files.append((path, identity, is_closed))

    def look(self) -> bool:
        """Whether everything is where it was put and takes what is written."""
        for path, identity, is_closed in self._files:
            if _identity(path) != identity:
                what = "the run folder " if path == self.folder.path else ""
                self.report(f"{what}{path} was deleted or moved while the run trained")
            elif is_closed() and not self.problem:  # whoever wrote to it has warned
                self.problem = f"{path} could not be written any more while the run trained"
        self._due = time.monotonic() + _LOOK_SECONDS
        return not self.problem

    @property
    def is_gone(self) -> bool:
        """Whether the run folder itself is no longer there."""
        path, identity, _ = self._files[0]
        return _identity(path) != identity

    def report(self, problem: str) -> None:
        """Say what is wrong, the first time."""
        if not self.problem:
            self.problem = problem
            self._say(f"warning: {problem}; training goes on, and the run will end with exit code 1")

    @contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Report a write that fails in the `with` block, and go on."""
        try:
            yield
        except (OSError, EventError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            words = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.report(f"{what} could not be written: {words[:1].lower()}{words[1:]}".removesuffix("."))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, where the last time is long ago."""
        if time.monotonic() >= self._due:
            self.look()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before the checkpoint is written."""
        self.look()


def _identity(path: Path) -> tuple[int, int] | None:
    """What distinguishes a file from another one of its name; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
