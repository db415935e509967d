"""Where the results of an attached process go, and the summary at its end.

Belongs here: the run folder or log folder, who claims it, what is written into it, and the printed summary. Does not:
what the results are (`results`), and the last line of a command that has trained nothing itself (`closing`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gradlab.attach.options import AttachOptions
from gradlab.attach.rendezvous import address_of_rank_zero, publish_address, visible_folder
from gradlab.attach.results import ModelResults, total_steps
from gradlab.errors import RunError
from gradlab.launch.rank_failures import note_failure
from gradlab.launch.summary import Summary
from gradlab.runs.folder import RunFolder, read_json, write_json
from gradlab.runs.lock import locked
from gradlab.runs.record import append_attempt, devices, git_state, versions, write_record
from gradlab.sinks.findings_file import FindingsFile, named_for


class Report:
    """The folder of one process's results: claimed when its first model is found."""

    def __init__(self, options: AttachOptions, rank: int, world_size: int) -> None:
        self.options = options
        self.rank = rank
        self.world_size = world_size
        self.started = time.monotonic()
        self.events: Path | None = None
        """Where event files go, of the first model; those of others in folders below."""
        self.run: RunFolder | None = None
        """The run folder, in the process that made it."""
        self.joined: RunFolder | None = None
        """The run folder of rank zero, in another rank that can see it."""
        self._held = contextlib.ExitStack()
        self._steps_before: list[int] = []
        """How many steps each model had when an earlier program of this process became this one."""
        self._mark: Path | None = None

    def claim(self) -> Path | None:
        """The folder for the event files of this process; the ranks of one training share it. None: not to be seen.

        Processes that have nothing to do with each other must not: TensorBoard stalls on two live files in one folder.
        """
        if self.events is None and self.rank > 0:
            self.events = self._join()
        elif self.events is None:
            root = Path(self.options.logdir or RunFolder(Path(self.options.run)).events)
            is_first = self._claim_run() if self.options.run else self._claim_logdir(root)
            self.events = root if is_first or self.world_size > 1 else root / f"process-{os.getpid()}"
            if self.world_size > 1:
                publish_address(self.options)
        return self.events

    def findings_file(self, label: str) -> FindingsFile | None:
        """What takes the findings of one more model; None where there is no run folder of this process.

        Args:
            label: of a model that is not the process's first one.
        """
        return FindingsFile(self.run.findings, of=label) if self.run is not None else None

    def _join(self) -> Path | None:
        """The event files' folder of rank zero, which may be on another node."""
        folder = visible_folder(address_of_rank_zero(self.options), self.options)
        if folder is None or self.options.logdir:
            return folder
        self.joined = RunFolder(folder)
        return self.joined.events

    def _claim_run(self) -> bool:
        """Make the run folder, unless another process has; a rank zero that is started again takes over its own."""
        folder = RunFolder(Path(self.options.run))
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.path.mkdir()
        except FileExistsError:
            if self._continues(folder.read_exit()):
                return self._take_over(folder)
            if self.world_size == 1 or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
                return False
            return self._take_over(folder)
        folder.events.mkdir()
        self._held.enter_context(locked(folder.lock))
        write_record(folder, _record(self.options.command))
        self.run = folder
        return True

    def _take_over(self, folder: RunFolder) -> bool:
        try:
            self._held.enter_context(locked(folder.lock))
        except RunError:
            return False
        folder.set_aside_exit()
        append_attempt(folder, _record(self.options.command))
        self.run = folder
        return True

    def _claim_logdir(self, logdir: Path) -> bool:
        logdir.mkdir(parents=True, exist_ok=True)
        mark = logdir / f".gradlab-attach-{self.options.command_pid}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            if not self._continues(read_json(mark)):
                return False
        self._mark = mark
        self._held.callback(mark.unlink, missing_ok=True)
        return True

    # A process that becomes another program (`exec`) is one run: the next program goes on with its steps.

    def hand_on(self, models: Sequence[ModelResults]) -> None:
        """Write down how far this program has come, and the end of the run, should the next one not be Python."""
        kept = {"pid": os.getpid(), "steps": [one.steps for one in models]}
        if self.run is not None:
            summary = self._summary(models)
            summary.save(self.run)
            self.run.write_exit(code=0, reason="became another program", steps=summary.steps, handed_on=kept)
        elif self._mark is not None:
            write_json(self._mark, {"handed_on": kept})

    def take_back(self) -> None:
        """The process goes on as it was."""
        if self.run is not None:
            self.run.exit.unlink(missing_ok=True)

    def first_step(self, number: int) -> int:
        """Of the model that is the number-th one of this process, from 0."""
        return self._steps_before[number] if number < len(self._steps_before) else 0

    def _continues(self, before: Mapping[str, Any] | None) -> bool:
        """Whether what an earlier program has left is that of this very process."""
        kept = (before or {}).get("handed_on") or {}
        if kept.get("pid") != os.getpid():
            return False
        self._steps_before = list(kept["steps"])
        return True

    def discard(self) -> None:
        """Nothing was watched after all: remove the empty run."""
        self._held.close()
        if self.run is not None:
            shutil.rmtree(self.run.path, ignore_errors=True)

    def note_own_failure(self, *, code: int, reason: str) -> None:
        """In another rank: leave a note where it has failed, for rank zero may see no more than a lost connection."""
        if code and self.joined is not None and self.joined.path.is_dir():
            note_failure(self.joined, code=code, reason=reason)

    def close(self, models: Sequence[ModelResults], *, code: int, reason: str) -> None:
        """Print and keep the summary of all models, and how the process has ended."""
        summary = self._summary(models)
        if self.run is not None:
            summary.save(self.run)
            kept = {"seconds": summary.seconds, "steps": summary.steps, "findings": len(summary.findings)}
            self.run.write_exit(code=code, reason=reason, **kept)
        self._held.close()
        from gradlab.launch.terminal import print_summary

        board = None if self.run else f"tensorboard --logdir {shlex.quote(str(self.events))}"
        print_summary(summary, file=sys.stderr, board=board)

    def _summary(self, models: Sequence[ModelResults]) -> Summary:
        labels = len(models) > 1
        layers = [replace(x, site=f"{one.label}: {x.site}") if labels else x for one in models for x in one.layers]
        run = Path(self.options.run) if self.options.run else Path(self.options.logdir)
        return Summary(
            name=run.parent.name if self.options.run else run.name,
            run=run.name,
            folder=str(run),
            seconds=time.monotonic() - self.started,
            epochs=None,
            steps=total_steps(models),
            metrics={},
            findings=tuple(
                named_for(finding, one.label if number else "")
                for number, one in enumerate(models)
                for finding in one.findings
            ),
            answers={},
            layers=tuple(layers),
            abstained={code: why for one in reversed(models) for code, why in one.abstained.items()},
        )


def _record(command: Sequence[str]) -> dict[str, Any]:
    """What was run. The devices only where the script has asked for them: asking would take memory on the first."""
    return {
        "argv": list(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": None,
        "git": git_state(Path.cwd()),
        "versions": versions(),
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count(), "pid": os.getpid()},
        "devices": devices() if torch.cuda.is_initialized() else [],
        "attached": True,
    }
