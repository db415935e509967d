"""How ranks on several nodes agree on one place of results: each node of a `torchrun --nnodes` has its own command.

Rank zero publishes the address of its results in the store of the process group. Ranks of other nodes read it there,
and note it in a file for the command that has started them, whose last line names it. torch is imported by the ranks
alone.
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


def publish_address(options: AttachOptions) -> None:
    """In rank zero: publish where its results are."""
    with contextlib.suppress(Exception):  # a process group without a store
        _store().set(_KEY, own_address(options))


def address_of_rank_zero(options: AttachOptions) -> str:
    """In another rank: `HOST:FOLDER`, where rank zero's results are; "" where it has published none."""
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if local is not None and local == world:
        return own_address(options)
    try:
        store = _store()
        store.wait([_KEY], timedelta(seconds=_PATIENCE_SECONDS))
        found = bytes(store.get(_KEY)).decode()
    except Exception:  # no process group, one without a store, or nothing published in time
        return ""
    if found != own_address(options):
        with contextlib.suppress(OSError):
            note_file(options).write_text(found, encoding="utf-8")
    return found


def visible_folder(address: str, options: AttachOptions) -> Path | None:
    """The folder of an address, as far as it can be seen from here; that of this command may not be there yet."""
    folder = Path(address.partition(":")[2])
    return folder if address and (address == own_address(options) or folder.is_dir()) else None


def take_noted_address(options: AttachOptions) -> str:
    """In the command's own process, at its end: the address that a rank it has started has noted; "" if none has."""
    note = note_file(options)
    try:
        found = note.read_text(encoding="utf-8")
        note.unlink()
        return found
    except OSError:
        return ""


def own_address(options: AttachOptions) -> str:
    """`HOST:FOLDER` of this command's results."""
    return f"{platform.node()}:{options.run or options.logdir}"


def note_file(options: AttachOptions) -> Path:
    """The file in which ranks note the address for the command of their node."""
    return Path(tempfile.gettempdir()) / f"gradlab-attach-{options.command_pid}-{options.began:.3f}"


def _store() -> Any:
    import torch.distributed.distributed_c10d as c10d

    return c10d._get_default_store()
