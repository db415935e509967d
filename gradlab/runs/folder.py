"""The folder of a run: how it is made, what lies in it, and what its contents say about its state.

Nothing is stored twice. A run is `running` while its lock is held; afterwards `exit.json` says how it ended, and a
folder without one belonged to a process that was killed. No service has to be alive to know, and a reused pid cannot
lie.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from gradlab.errors import MachineError, TrainingStopped, UsageError
from gradlab.runs.lock import is_locked, read_lock

Status = Literal["running", "done", "failed", "stopped", "interrupted", "resumable", "lost"]
STATUSES: tuple[str, ...] = get_args(Status)

_STATUS_OF_CODE: Mapping[int, Status] = {
    0: "done",
    75: "resumable",
    TrainingStopped.exit_code: "stopped",
    130: "interrupted",
}


@dataclass(frozen=True)
class RunFolder:
    """One run on disk: `<root>/<name>/<YYYYMMDD-HHMMSS>-<4 letters>/`."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str) -> RunFolder:
        """Make a new folder under `root`; two runs of the same second get different letters.

        Raises:
            UsageError: where `name` is no plain folder name.
            MachineError: where the folder cannot be made or written to.
        """
        if name in ("", ".", "..") or Path(name).name != name:
            raise UsageError(f"the name of a run is the name of its folder, so it may hold no slash; got {name!r}.")
        parent = root / spelled_on_disk(name)
        folder = None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = cls(_new_child(parent))
            for part in (folder.events, folder.checkpoints):
                part.mkdir()
        except OSError as error:
            if folder is not None:
                folder.remove()
            raise MachineError(
                f"cannot make a run folder in {parent}: {error.strerror}. Choose another place with --runs DIR."
            ) from error
        return folder

    def remove(self) -> None:
        """Remove the folder of a run that could not begin, and that of its experiment where no other run is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    @property
    def id(self) -> str:
        """`<YYYYMMDD-HHMMSS>-<4 letters>`, of the time in UTC; runs from before 0.2 have their local time there."""
        return self.path.name

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return read_from_disk(self.path.parent.name)

    @property
    def experiment(self) -> Path:
        """The experiment file as it was written."""
        return self.path / "experiment.yaml"

    @property
    def resolved(self) -> Path:
        """The experiment with overrides applied and defaults filled in; runnable."""
        return self.path / "resolved.yaml"

    @property
    def record(self) -> Path:
        """Who, what, where: see `gradlab.runs.record`."""
        return self.path / "record.json"

    @property
    def patch(self) -> Path:
        """What was not committed when the run started."""
        return self.path / "uncommitted.patch"

    @property
    def metrics(self) -> Path:
        """Scalars and findings, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def findings(self) -> Path:
        """Findings alone, as they come: a JSON object a line, a later state of the same finding as a further one."""
        return self.path / "findings.jsonl"

    @property
    def abstained(self) -> Path:
        """By code of each rule that could not tell when it was last asked: what was missing."""
        return self.path / "abstained.json"

    @property
    def events(self) -> Path:
        """The logdir of TensorBoard: event files and, a folder a window, the traces of the profiler."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint from which the run goes on."""
        return self.checkpoints / "last.ckpt"

    @property
    def log(self) -> Path:
        """Warnings and log messages of every library, and the traceback of a run that failed."""
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        """Locked while the run's process lives."""
        return self.path / "lock"

    @property
    def summary(self) -> Path:
        """The closing summary as JSON: final metrics, findings, answers, layers."""
        return self.path / "summary.json"

    @property
    def exit(self) -> Path:
        """How the last attempt ended; absent while it runs and after it was killed."""
        return self.path / "exit.json"

    def started(self) -> datetime:
        """When the first attempt began, by the record; else by the id."""
        with contextlib.suppress(KeyError, ValueError, TypeError):
            started = datetime.fromisoformat((read_json(self.record) or {})["started"])
            return started if started.tzinfo else started.replace(tzinfo=UTC)
        with contextlib.suppress(ValueError):
            return datetime.strptime(self.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        return datetime.fromtimestamp(0, UTC)

    def status(self) -> Status:
        """The state of the run, read off the folder."""
        if is_locked(self.lock):
            return "running"
        ended = self.read_exit()
        if ended is None:
            return "lost"
        return _STATUS_OF_CODE.get(int(ended["code"]), "failed")

    def attempt(self) -> int:
        """The number of the last attempt to run this folder, from 1; 0 where there was none."""
        return int(read_lock(self.lock).get("attempt", 0))

    def read_exit(self) -> dict[str, Any] | None:
        """The contents of `exit.json`, or None where there is none."""
        return read_json(self.exit)

    def write_exit(self, *, code: int, reason: str, **facts: Any) -> None:
        """Say how the attempt ended, in one step: a reader sees all of it or nothing."""
        write_json(self.exit, {"code": code, "reason": reason, "attempt": self.attempt(), **facts})

    def set_aside_exit(self) -> None:
        """Rename `exit.json` to `exit-<attempt>.json`, so that a new attempt that gets killed is seen as lost."""
        ended = self.read_exit()
        if ended is not None:
            self.exit.rename(self.path / f"exit-{ended.get('attempt', 1)}.json")


def new_id() -> str:
    """The id of a run that starts now: in UTC, so that ids sort by time wherever they were made."""
    letters = random.SystemRandom()  # never the seeded generator: two seeded runs would choose alike
    suffix = "".join(letters.choices(string.ascii_lowercase, k=4))
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{suffix}"


def spelled_on_disk(name: str) -> str:
    """How this process spells a file's name so that it is UTF-8 on disk, whatever its locale says of file names."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def read_from_disk(name: str) -> str:
    """The text of a file's name, or of an argument, that this process spells as its locale says; it is UTF-8."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _new_child(parent: Path) -> Path:
    """A folder of its own below `parent`, made exclusively."""
    while True:
        child = parent / new_id()
        try:
            child.mkdir()
        except FileExistsError:
            continue
        return child


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of a file, or None where there is no such file or it is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object by way of a new file and a rename, so that no reader sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(draft, path)
