"""One training, several commands: on each node of a `torchrun --nnodes` a `gradlab attach` of its own.

Rank zero tells the ranks of the other nodes where its results are, by the store of the process group; they tell the
command that has started them, by a file, which says so in its last line. torch is imported by the ranks alone.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from gradlab.attach.options import AttachOptions

_KEY = "gradlab/attach"
_PATIENCE_SECONDS = 3.0
"""A rank zero that trains nothing keeps the others waiting so long, once."""


def tell(options: AttachOptions) -> None:
    """Rank zero tells where its results are."""
    with contextlib.suppress(Exception):  # a process group without a store
        _store().set(_KEY, own_address(options))


def ask(options: AttachOptions) -> str:
    """In another rank: `HOST:FOLDER`, where rank zero's results are; "" where it does not tell."""
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if local is not None and local == world:
        return own_address(options)
    try:
        store = _store()
        store.wait([_KEY], timedelta(seconds=_PATIENCE_SECONDS))
        found = bytes(store.get(_KEY)).decode()
    except Exception:  # no process group, one without a store, or nothing told in time
        return ""
    if found != own_address(options):
        with contextlib.suppress(OSError):
            _mark(options).write_text(found, encoding="utf-8")
    return found


def folder_at(address: str, options: AttachOptions) -> Path | None:
    """The folder of an address, as far as it can be seen from here; that of this command may not be there yet."""
    folder = Path(address.partition(":")[2])
    return folder if address and (address == own_address(options) or folder.is_dir()) else None


def take_address(options: AttachOptions) -> str:
    """In the command's own process, at its end: what a rank that it has started was told; "" if none was."""
    mark = _mark(options)
    try:
        found = mark.read_text(encoding="utf-8")
        mark.unlink()
        return found
    except OSError:
        return ""


def own_address(options: AttachOptions) -> str:
    """`HOST:FOLDER` of this command's results."""
    return f"{platform.node()}:{options.run or options.logdir}"


def _mark(options: AttachOptions) -> Path:
    return Path(tempfile.gettempdir()) / f"gradlab-attach-{options.command_pid}-{options.began:.3f}"


def _store() -> Any:
    import torch.distributed.distributed_c10d as c10d

    return c10d._get_default_store()
