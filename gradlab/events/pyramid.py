"""The pyramid of a series: extremes over blocks of 32, 512 and 8,192 logged steps.

TensorBoard keeps a random sample of the steps of a long run; a spike of one step is then usually lost. A block keeps
the least, the mean and the largest finite value of each site and how many were not finite, so an overview of any length
is exact. Belongs here: what a block is and when one is full. Does not: tags and records (`writer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradlab.events.templates import VectorTemplate
from gradlab.frame import ABSENT

SIZES = (32, 512, 8192)
"""How many logged steps a full block of each level holds."""
LEVELS = len(SIZES)
_FANOUT = 16
"""How many blocks make one of the next level."""
ROWS = ("min", "mean", "max", "nonfinite")
"""The rows of a block, each [sites] float32. `ABSENT` where no value was finite."""
_ABSENT_BITS = ABSENT.view(np.uint32)


@dataclass(frozen=True)
class Block:
    """A full block of one tag."""

    tag: str
    steps: int
    """How many logged steps a full block of its level holds: see `SIZES`."""
    values: np.ndarray
    """[4, sites] float32, as `ROWS` says."""


@dataclass
class _Pending:
    raw: list[bytes] = field(default_factory=list)
    """The vectors since the last block, as they went into the file."""
    blocks: list[list[np.ndarray]] = field(default_factory=lambda: [[] for _ in range(LEVELS - 1)])
    """For each level but the highest, the [5, sites] reductions since the last block of the next."""
    written: int = 0
    """How many levels have a block in the file."""


class Pyramid:
    """Collects the vectors of tags and gives out blocks. Cost: a list's append a vector, a reduction every 32."""

    def __init__(self) -> None:
        self._pending: dict[str, _Pending] = {}

    def add(self, template: VectorTemplate, contents: Sequence[bytes]) -> list[str]:
        """Take one step's vectors; returns the tags that now have a full block waiting for `full`."""
        due = []
        pooled = template.pooled
        for tag, content in zip(template.tags, contents, strict=True):
            if len(pooled) < len(contents) and tag not in pooled:
                continue
            pending = self._pending.get(tag)
            if pending is None:
                pending = self._pending[tag] = _Pending()
            pending.raw.append(content)
            if len(pending.raw) == SIZES[0]:
                due.append(tag)
        return due

    def full(self, due: Iterable[str]) -> Iterator[Block]:
        """The blocks of the tags that `add` named, those of one level before those of the next."""
        by_size: dict[int, list[str]] = {}
        for tag in due:
            by_size.setdefault(len(self._pending[tag].raw[0]), []).append(tag)
        for tags in by_size.values():
            yield from self._reduced(tags)

    def rest(self) -> Iterator[Block]:
        """The blocks that are not full yet, for the end of a file; of levels that have a full one before them."""
        for tag, pending in self._pending.items():
            if pending.raw and pending.written:
                yield from self._reduced([tag])
            for level in range(1, pending.written):
                if pending.blocks[level - 1]:
                    yield from self._raised(tag, level)
        self._pending.clear()

    def _reduced(self, tags: list[str]) -> Iterator[Block]:
        """The lowest blocks of tags with vectors of one length: numpy's calls cost more than its work."""
        for tag, block in zip(tags, _reduce_raw([self._pending[tag].raw for tag in tags]), strict=True):
            pending = self._pending[tag]
            pending.raw.clear()
            pending.blocks[0].append(block)
            pending.written = max(pending.written, 1)
            yield Block(tag, SIZES[0], _written(block))
            for level in range(1, LEVELS):
                if len(pending.blocks[level - 1]) == _FANOUT:
                    yield from self._raised(tag, level)

    def _raised(self, tag: str, level: int) -> Iterator[Block]:
        """The block of `level` made of those that wait in the level below."""
        pending = self._pending[tag]
        blocks, pending.written = pending.blocks, max(pending.written, level + 1)
        block = _join(np.stack(blocks[level - 1]))
        blocks[level - 1].clear()
        if level < LEVELS - 1:
            blocks[level].append(block)
        yield Block(tag, SIZES[level], _written(block))


def _reduce_raw(raw: list[list[bytes]]) -> np.ndarray:
    """[tags, 5, sites] out of [tags][steps] of bytes: least, sum, largest, not finite, finite."""
    joined = b"".join([content for contents in raw for content in contents])
    values = np.frombuffer(joined, "<f4").reshape(len(raw), len(raw[0]), -1)
    block = np.empty((len(raw), 5, values.shape[2]), np.float32)
    with np.errstate(invalid="ignore"):
        total = values.sum(1, dtype=np.float64)
    if np.isfinite(total).all():
        values.min(1, out=block[:, 0])
        block[:, 1] = total / values.shape[1]
        values.max(1, out=block[:, 2])
        block[:, 3], block[:, 4] = 0, values.shape[1]
        return block
    finite = np.isfinite(values)
    absent = values.view(np.uint32) == _ABSENT_BITS
    number = finite.sum(1)
    block[:, 0] = np.where(finite, values, np.inf).min(1)
    block[:, 1] = np.where(finite, values, 0).sum(1, dtype=np.float64) / np.maximum(number, 1)
    block[:, 2] = np.where(finite, values, -np.inf).max(1)
    block[:, 3] = (~finite & ~absent).sum(1)
    block[:, 4] = number
    return block


def _join(blocks: np.ndarray) -> np.ndarray:
    """One [5, sites] out of [n, 5, sites]."""
    number = blocks[:, 4].sum(0)
    mean = (blocks[:, 1].astype(np.float64) * blocks[:, 4]).sum(0) / np.maximum(number, 1)
    return np.stack([blocks[:, 0].min(0), mean, blocks[:, 2].max(0), blocks[:, 3].sum(0), number]).astype(np.float32)


def _written(block: np.ndarray) -> np.ndarray:
    """The four rows that go into the file, with `ABSENT` where nothing was finite."""
    rows = block[:4]
    nothing = block[4] == 0
    if nothing.any():
        rows = rows.copy()
        rows[:3, nothing] = ABSENT
    return rows
