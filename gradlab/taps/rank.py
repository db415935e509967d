"""Which of the processes that train together this one is."""

from __future__ import annotations

import os

import torch


def own_rank() -> int:
    """This process's rank: that of its process group, else the one that a launcher such as torchrun has given it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))
