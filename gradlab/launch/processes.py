"""A run of several processes: rank zero makes the folder and does all the writing, the others find it and only train.

Lightning starts the same command once more for each further rank, which finds the folder in its environment; where
torchrun has started all of them, in torchrun's own store. A rank that fails leaves a note, by which rank zero, which
sees no more than a lost connection, can say who was first (`rank_failures`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from gradlab.distributed import is_under_torchrun, launched_rank, launched_world
from gradlab.errors import UsageError
from gradlab.runs.folder import RunFolder

_FOLDER = "GRADLAB_RUN_FOLDER"
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
        UsageError: where it was not announced.
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
    """Several nodes are asked for, and nothing says which of them this is: Lightning would wait for the others.

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
