"""GradlabLogger: what a LightningModule logs goes into the event file that gradlab writes anyway.

Two live event files in one folder stall TensorBoard's Python loader, so Lightning's own TensorBoardLogger beside ours
would cost the user half the curves.
"""

from __future__ import annotations

import os
import time
import warnings
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from gradlab.errors import EventError
from gradlab.events import EventWriter
from gradlab.lightning.experiment import Experiment, table
from gradlab.sinks import JsonlSink
from gradlab.tags import HPARAMS_SESSION_TAG


class GradlabLogger(Logger):
    """A Lightning Logger into `writer`: `Trainer(logger=GradlabLogger(writer, save_dir="runs/mlp"))`.

    A file that can no longer be written does not stop the training: the logger says so once and is silent from then on.
    It writes on rank zero only, and does not close the writer, which the caller made.
    """

    def __init__(
        self,
        writer: EventWriter,
        *,
        save_dir: str | os.PathLike[str] | None = None,
        name: str = "",
        version: str = "",
        jsonl: JsonlSink | None = None,
    ) -> None:
        """Log into `writer`.

        Args:
            writer: the event file.
            save_dir: the folder that Lightning's callbacks may put things into (ModelCheckpoint makes `checkpoints` in
                `save_dir/name/version`); where left out they use the trainer's `default_root_dir`.
            name: a folder inside it, none where empty.
            version: a folder inside that, none where empty.
            jsonl: a sink that gets the metrics too.
        """
        super().__init__()
        self._writer = writer
        self._save_dir = None if save_dir is None else os.fspath(save_dir)
        self._name = name
        self._version = version
        self._jsonl = jsonl
        self._failed = False
        self._experiment = Experiment(writer, self._switch_off)
        self._late: set[str] = set()

    @property
    def name(self) -> str:
        """The folder inside `save_dir`."""
        return self._name

    @property
    def version(self) -> str:
        """The folder inside `save_dir/name`."""
        return self._version

    @property
    def save_dir(self) -> str | None:
        """Where Lightning's callbacks put things."""
        return self._save_dir

    @property
    def root_dir(self) -> str | None:
        """`save_dir/name`."""
        return None if self._save_dir is None else os.path.join(self._save_dir, self._name)

    @property
    def log_dir(self) -> str | None:
        """`save_dir/name/version`."""
        return None if self.root_dir is None else os.path.join(self.root_dir, self._version)

    @property
    @rank_zero_experiment
    def experiment(self) -> Experiment:
        """The file with the methods of torch's SummaryWriter: `self.logger.experiment.add_image(...)`."""
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write native scalars. `epoch`, which Lightning adds, is one of them; nested ones are joined by `/`.

        A metric whose step goes back (as in a second `fit`) is left out with one warning: TensorBoard would drop its
        newer values. For `epoch` Lightning does that after each epoch, so there it is left out in silence.
        """
        if self._failed:
            return
        at = 0 if step is None else step
        numbers = _numbers(metrics)
        in_order = {tag: number for tag, number in numbers.items() if not self._is_late(tag, at)}
        now = time.time()
        try:
            self._writer.scalars(in_order, at, now)
            if self._jsonl is not None:
                self._jsonl.scalars(numbers, at, now)
        except EventError as error:
            self._switch_off(error)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | None, *args: Any, **kwargs: Any) -> None:
        """Write settings: to the HPARAMS tab the first time, and always as a table in the Text tab.

        Args:
            params: the settings, nested as they may be.
            args: ignored; other loggers take initial metrics.
            kwargs: ignored.
        """
        config = vars(params) if isinstance(params, Namespace) else dict(params or {})
        if not config or self._failed:
            return
        try:
            if self._writer.last_step(HPARAMS_SESSION_TAG) is None:
                self._writer.hparams(config)
            self._writer.text("hyperparameters", table(config), 0)
        except EventError as error:
            self._switch_off(error)

    @rank_zero_only
    def save(self) -> None:
        """Make what was logged readable by others."""
        if self._failed or self._writer.closed:
            return
        try:
            self._writer.flush()
        except EventError as error:
            self._switch_off(error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """At the end of a fit: as `save`. The trainer may be used again."""
        self.save()

    def _switch_off(self, error: EventError) -> None:
        """Say once that the file can no longer be written."""
        if not self._failed:
            self._failed = True
            warnings.warn(f"the logger was switched off: {error}", stacklevel=3)

    def _is_late(self, tag: str, step: int) -> bool:
        last = self._writer.last_step(tag)
        if last is None or step >= last:
            return False
        if tag != "epoch" and tag not in self._late:
            self._late.add(tag)
            warnings.warn(
                f"{tag!r} was logged at step {step} after step {last} and is left out of TensorBoard, which keeps a "
                "metric's steps in order. Use a fresh logger for a second fit, or another name for the metric.",
                stacklevel=4,
            )
        return True


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Floats by tag, out of numbers, one-element tensors and nested mappings."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = float(value)
    return found
