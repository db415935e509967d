"""Which of the processes that train together this one is, and how many there are.

Belongs here: what torch's process group says, and before there is one, the launcher's variables. Does not: messages
between processes (`taps.across_ranks`, `launch.processes`, `attach.rendezvous`).

torch is imported by the functions that ask it: the launcher's variables are read in processes without torch, too, such
as a script without it that `gradlab attach` runs.
"""

from __future__ import annotations

import os


def has_group() -> bool:
    """Whether the processes know one another: torch's default process group has been made."""
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def own_rank() -> int:
    """This process's rank in its group, else the one that a launcher such as torchrun has given it, else 0."""
    return rank_in_group() if has_group() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes are in the group; 1 without one."""
    import torch.distributed

    return torch.distributed.get_world_size() if has_group() else 1


def rank_in_group() -> int:
    """This process's rank in its group; 0 without one, whatever a launcher has said."""
    import torch.distributed

    return torch.distributed.get_rank() if has_group() else 0


def launched_rank() -> int:
    """The rank that this process was started with, of its whole training or of its node; 0 where there is one process.

    For the time before there is a group: Lightning starts further processes itself, by LOCAL_RANK alone.
    """
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0")


def is_under_torchrun() -> bool:
    """Whether torchrun has started this process and those beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def launched_world() -> tuple[int, int]:
    """How many processes torchrun has started on this node, and on all nodes."""
    return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
