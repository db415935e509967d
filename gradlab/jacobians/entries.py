"""The entries of a tensor: which of them are picked as rows or columns of a block, and how each is called.

Needs no tensors, only their shapes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import lru_cache
from math import prod

import numpy as np

from gradlab.errors import JacobianError

Picks = int | Iterable[int] | None
"""Entries of a tensor: the first so many, flat indices (negative ones count from the end), or None for all."""

Indices = range | tuple[int, ...]
"""Flat indices, none negative."""


def as_tuple(picks: Picks) -> int | tuple[int, ...] | None:
    """A list of indices as a tuple, which can be gone through again and be hashed; all else as it is.

    What is no list of indices stays for `chosen` to refuse, which knows the tensor.
    """
    return tuple(picks) if isinstance(picks, Iterable) and not isinstance(picks, str) else picks


def chosen(picks: Picks, size: int, *, axis: str, site: str) -> Indices:
    """The flat indices that `picks` means in a tensor of `size` entries.

    Args:
        picks: the first so many, a list of flat indices, or None for all.
        size: how many entries there are.
        axis: `rows` or `cols`, for messages.
        site: whose entries they are, for messages.
    Raises:
        JacobianError: if there is no such entry, or none is picked.
    """
    if picks is None:
        return range(size)
    if isinstance(picks, bool | str) or not isinstance(picks, int | Iterable):
        raise JacobianError(f"{axis}={picks!r}: give a number of entries or a list of flat indices.")
    if isinstance(picks, int):
        if not 1 <= picks <= size:
            raise JacobianError(
                f"{axis}={picks} asks for the first {picks} entries of {site!r}, which has {size}; "
                f"give 1 to {size}, or leave {axis} out for all."
            )
        return range(picks)
    return _listed(picks, size, axis, site)


def _listed(picks: Iterable[int], size: int, axis: str, site: str) -> tuple[int, ...]:
    indices = []
    for pick in picks:
        try:
            index = operator.index(pick)
        except TypeError:
            raise JacobianError(f"{axis}: {pick!r} is no flat index into {site!r}; give whole numbers.") from None
        if not -size <= index < size:
            raise JacobianError(
                f"{axis}: index {index} is out of range; {site!r} has {size} entries, so 0 to {size - 1} "
                f"(or -{size} to -1 from the end)."
            )
        indices.append(index % size)
    if not indices:
        raise JacobianError(f"{axis} is empty; leave it out for all {size} entries of {site!r}.")
    return tuple(indices)


@lru_cache(maxsize=64)
def entry_names(shape: tuple[int, ...], indices: Indices) -> tuple[str, ...]:
    """The index of each flat entry in a tensor of that shape: `7`, or `3,0,5` where there are several axes."""
    if prod(shape) == 1 or len(shape) == 1:
        return tuple(map(str, indices))
    coordinates = np.unravel_index(np.asarray(indices), shape)
    return tuple(",".join(map(str, index)) for index in zip(*(axis.tolist() for axis in coordinates), strict=True))
