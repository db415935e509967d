"""A run of several processes: rank zero makes the folder and does all the writing, the others find it and only train.

Lightning starts the same command once more for each further rank, which is told the folder by its environment; where
torchrun has started all of them, by torchrun's own store. A rank that fails leaves a note, by which rank zero, which
sees no more than a lost connection, can say who was first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from gradlab.distributed import is_under_torchrun, launched_rank, launched_world
from gradlab.errors import UsageError
from gradlab.runs.folder import RunFolder, read_json, write_json

_FOLDER = "GRADLAB_RUN_FOLDER"
_PATIENCE_SECONDS = 3.0
_STORE_SECONDS = 300
_LAUNCHERS = ("NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "SLURM_", "LSB_", "OMPI_", "PMI_", "TORCHELASTIC_")
"""What launchers call their variables."""


def launched_devices(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning's `devices` and `num_nodes` under torchrun, which has settled both.

    Raises:
        UsageError: where the experiment asks for another number.
    """
    if not is_under_torchrun():
        return {}
    here, world = launched_world()
    found = {"devices": here, "num_nodes": world // here}
    for name, number in found.items():
        given = asked.get(name, "auto")
        if given not in ("auto", -1, "-1", number, str(number)):
            raise UsageError(
                f"trainer.{name} is {given!r}, but torchrun has started {here} processes on each of {world // here} "
                f"nodes. Leave trainer.{name} out, or start as many."
            )
    return found


@contextmanager
def announced(folder: RunFolder) -> Iterator[None]:
    """Tell the processes that take part in the run during the `with` block where it is."""
    os.environ[_FOLDER] = str(folder.path.resolve())
    if is_under_torchrun() and launched_world()[1] > 1:
        _store().set(_key(), os.environ[_FOLDER])
    try:
        yield
    finally:
        del os.environ[_FOLDER]


def announced_folder() -> RunFolder:
    """The run that this process takes part in.

    Raises:
        UsageError: where nobody has told.
    """
    if _FOLDER in os.environ:
        return RunFolder(Path(os.environ[_FOLDER]))
    if is_under_torchrun():
        return RunFolder(Path(_store().get(_key()).decode()))
    raise UsageError(
        "this process is told to be a further rank (LOCAL_RANK), but not of which run. Start the ranks with torchrun, "
        "or call gradlab run once and say trainer.devices=N."
    )


@contextmanager
def followed(folder: RunFolder, say: Callable[[str], None]) -> Iterator[RunFolder]:
    """The folder in which a further rank works: the run's own, or one for the time of the `with` block.

    On another node the first of its ranks says where the results are. The run's folder may not be seen from there; what
    a rank writes besides results, such as its log, is kept then only if it has failed.
    """
    leads_node = launched_rank() > 0 and os.environ.get("LOCAL_RANK") == "0"
    where = f"{os.environ.get('MASTER_ADDR', 'rank zero')}:{folder.path}"
    if folder.path.is_dir():
        if leads_node:
            say(f"this node takes part in {where}; rank zero writes the results there")
        yield folder
        return
    own = RunFolder(Path(tempfile.mkdtemp(prefix="gradlab-rank")))
    if leads_node:
        say(f"this node takes part in {where}, which cannot be seen from here; its logs are in {own.path}")
    yield own
    if not list(own.path.glob("exit-rank*.json")):
        shutil.rmtree(own.path, ignore_errors=True)


def refuse_lonely_node(options: Mapping[str, Any]) -> None:
    """Several nodes are asked for, and nothing tells which of them this is: Lightning would wait for the others.

    Raises:
        UsageError: with the command that starts them.
    """
    nodes = int(options.get("num_nodes", 1))
    if nodes > 1 and not any(name.startswith(_LAUNCHERS) for name in os.environ):
        raise UsageError(
            f"trainer.num_nodes is {nodes}, but nothing tells which node this is. Start on each of them: "
            f"torchrun --nnodes {nodes} --node-rank N --master-addr HOST --nproc-per-node DEVICES -m gradlab run ..."
        )


def _store() -> Any:
    """The store that torchrun keeps for its processes."""
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=_STORE_SECONDS)
    return dist.TCPStore(host, port, is_master=False, timeout=limit)  # type: ignore[attr-defined]


def _key() -> str:
    return f"gradlab/folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a further rank ended."""

    rank: int
    code: int
    reason: str
    at: float
    """When, in seconds since the epoch."""

    @classmethod
    def of_process(cls, rank: int, code: int) -> Failure:
        """What is known of a process by the code that it ended with, negative where a signal has killed it."""
        reason = f"killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        return cls(rank=rank, code=code if code > 0 else 128 - code, reason=reason, at=time.time())


def note_failure(folder: RunFolder, *, code: int, reason: str) -> None:
    """This rank has failed: leave word for rank zero."""
    path = folder.path / f"exit-rank{launched_rank()}.json"
    write_json(path, {"rank": launched_rank(), "code": code, "reason": reason, "at": time.time()})


def blame(failure: Failure, folder: RunFolder) -> str:
    """One sentence."""
    log = folder.path / f"log-rank{failure.rank}.txt"
    return f"rank {failure.rank} failed, {failure.reason} ({log})"


def first_failure(folder: RunFolder, processes: Sequence[Any] = (), *, since: float, patience: bool) -> Failure | None:
    """The further rank that failed first, by its note or by what its process ended with.

    Args:
        folder: of the run.
        processes: of ranks 1, 2, ..., where this one has started them.
        since: when this attempt began.
        patience: wait a little, where this rank itself knows no more than that another one is gone.
    """
    deadline = time.monotonic() + (_PATIENCE_SECONDS if patience else 0.0)
    while True:
        notes = [note for path in folder.path.glob("exit-rank*.json") if (note := read_json(path))]
        failures = [Failure(**note) for note in notes if note["at"] >= since]
        if failures:
            return min(failures, key=lambda failure: failure.at)
        for rank, process in enumerate(processes, start=1):
            code = process.poll()
            if code:
                return Failure.of_process(rank, code)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)
