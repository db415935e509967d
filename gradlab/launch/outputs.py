"""Where the results of a run go: one event file and two files of JSON lines, written by rank zero alone.

The event file also holds what the run is (`run_card`) and what its model answers, as Markdown for the Text tab.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytorch_lightning.loggers import Logger

from gradlab.events import EventWriter
from gradlab.events.markdown import cell
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.prepare import Prepared
from gradlab.lightning.logger import GradlabLogger
from gradlab.runs.folder import RunFolder
from gradlab.sinks import FindingsFile, JsonlSink, Sink, TensorBoardSink


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
    """Open the files of a run and write into them what it is; they are flushed and closed when the block is left."""
    writer = EventWriter(folder.events, resumed_step=resumed_step)
    tensorboard, jsonl, findings = TensorBoardSink(writer), JsonlSink(folder.metrics), FindingsFile(folder.findings)
    logger = GradlabLogger(writer, jsonl=jsonl)
    watch.follow(writer.path, lambda: writer.closed)
    watch.follow(folder.metrics, lambda: jsonl.closed)
    watch.follow(folder.findings, lambda: findings.closed)
    try:
        writer.text("run/card", run_card(folder, record, prepared.loaded.resolved()), resumed_step or 0)
        logger.log_hyperparams(hyperparameters(prepared.loaded.experiment))
        yield Outputs(sinks=(tensorboard, jsonl, findings), logger=logger)
        watch.look()
    finally:
        for sink in (tensorboard, jsonl, findings):
            with watch.tolerating(f"what the run has measured ({sink.name})"):
                sink.close()


def run_card(folder: RunFolder, record: Mapping[str, Any], resolved: str) -> str:
    """What the run is: where it lies, the command, the code, the versions, every setting."""
    rows = {
        "run": f"{folder.name} / {folder.id}",
        "started": record["started"],
        "command": " ".join(record["argv"]),
        "code": code_text(record["git"]),
        "seed": record["seed"],
        "host": record["host"]["name"],
        "devices": ", ".join(device["name"] for device in record["devices"]) or f"{record['host']['cpus']} CPUs",
        **{name: version for name, version in record["versions"].items() if version},
    }
    table = "\n".join(f"| {name} | {cell(value)} |" for name, value in rows.items())
    settings = resolved.strip()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", settings)), default=0))
    return f"| | |\n|---|---|\n{table}\n\n{fence}yaml\n{settings}\n{fence}\n"


def hyperparameters(experiment: Any) -> dict[str, Any]:
    """What makes one run of an experiment differ from another, under the names that overrides have."""
    classes = {name: getattr(experiment, name) for name in ("model", "data", "optimizer")}
    given = {
        name: {"class_path": spec.class_path, "init_args": dict(spec.init_args)}
        for name, spec in classes.items()
        if spec
    }
    return {"seed": experiment.seed, **given, "trainer": dict(experiment.trainer)}


def answers_card(answers: Mapping[str, str]) -> str:
    """A model's answers as a table."""
    rows = "\n".join(f"| {cell(name)} | {cell(text)} |" for name, text in answers.items())
    return f"| answer | value |\n|---|---|\n{rows}\n"


def code_text(git: Mapping[str, Any] | None) -> str:
    """Branch and commit in a few words."""
    if git is None:
        return "no git repository"
    dirty = ", with uncommitted changes" if git.get("dirty") else ""
    return f"{git['branch']} {git['sha'][:10]}{dirty}"
