"""Where the results of a run go: one event file and one file of JSON lines, written by rank zero alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytorch_lightning.loggers import Logger

from gradlab.events import EventWriter
from gradlab.launch.card import hyperparameters, run_card
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.prepare import Prepared
from gradlab.lightning.logger import GradlabLogger
from gradlab.runs.folder import RunFolder
from gradlab.sinks import JsonlSink, Sink, TensorBoardSink


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What takes the results of one process."""

    sinks: tuple[Sink, ...] = ()
    """What gradlab measures goes here."""
    logger: Logger | None = None
    """What the model logs goes here."""


@contextmanager
def outputs(
    prepared: Prepared,
    folder: RunFolder,
    record: Mapping[str, Any],
    *,
    resumed_step: int | None,
    watch: FolderWatch,
) -> Iterator[Outputs]:
    """Open the files of a run and tell in them what it is; they are flushed and closed when the block is left."""
    writer = EventWriter(folder.events, resumed_step=resumed_step)
    tensorboard, jsonl = TensorBoardSink(writer), JsonlSink(folder.metrics)
    logger = GradlabLogger(writer, jsonl=jsonl)
    watch.follow(writer.path, lambda: writer.closed)
    watch.follow(folder.metrics, lambda: jsonl.closed)
    try:
        writer.text("run/card", run_card(folder, record, prepared.loaded.resolved()), resumed_step or 0)
        logger.log_hyperparams(hyperparameters(prepared.loaded.experiment))
        yield Outputs(sinks=(tensorboard, jsonl), logger=logger)
        watch.look()
    finally:
        for sink in (tensorboard, jsonl):
            with watch.tolerating(f"what the run has measured ({sink.name})"):
                sink.close()
