"""A number by which a batch is known again, where an iterable is read a second time."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def fingerprint(batch: Any) -> int:
    """A number by which a batch is known again: its shapes and a few of its values."""
    code = 0
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().reshape(-1) if leaf.device.type == "cpu" else leaf.new_empty(0)
            few = torch.cat([flat[:8], flat[-8:]]).tolist()
            code = zlib.crc32(f"{tuple(leaf.shape)} {few}".encode(), code)
        elif isinstance(leaf, np.ndarray):
            code = zlib.crc32(f"{leaf.shape} {leaf.reshape(-1)[:8]} {leaf.reshape(-1)[-8:]}".encode(), code)
        elif isinstance(leaf, int | float | str | bytes):
            code = zlib.crc32(repr(leaf).encode(), code)
    return code
