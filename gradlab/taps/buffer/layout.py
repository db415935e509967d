"""The layout of the buffer: which slots of a row belong to which quantity of which site, and where a part lies.

Names, numbers and the functions that fill a slot; no tensor and no device. The slots themselves are in `rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gradlab.stats.parts import PARTS, WIDTHS, Part

NEVER, TRIAL, SAFE = -1, 0, 1
"""Whether small tensors wait to be reduced together: never; not before a trial shows they may; yes (`batching`)."""

NORM_IN_ONE = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Dtypes whose norm torch reduces in float32 straight into a slot."""

NO_ELEMENTS = -1
"""In the counts of elements: a tensor was seen and is empty, where 0 says that none was seen."""


@dataclass(slots=True, eq=False)
class Entry:
    """The slots of one quantity of one site."""

    index: int
    """Position in a row's counts of elements."""
    start: int
    """The first slot."""
    parts: tuple[str, ...]
    """What the slots hold, in order."""
    functions: tuple[Part, ...]
    """How each is computed."""
    widths: tuple[int, ...]
    """How many slots each takes."""
    is_norm: bool
    """Whether the norm is all that is wanted, which has a path of its own."""
    site: str
    label: str
    """The quantity, with `@stage` where that is not `final`: `output`, `weight_grad`, `weight_grad@micro`, ..."""
    waits: int
    """Whether its small tensors wait to be reduced together: `NEVER`, `TRIAL` or `SAFE`."""

    @property
    def is_micro(self) -> bool:
        """Whether it is of single backwards, of which the last one of a step is logged."""
        return self.label.endswith("@micro")


class Layout:
    """The entries of a row, one behind the other. It only grows; entries keep their place."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.width = 0
        """How many slots they take."""

    def add(self, site: str, label: str, parts: tuple[str, ...], own: Mapping[str, Part] | None = None) -> Entry:
        """New slots for a labelled quantity of a site; `own` has the functions of parts that are not in `PARTS`."""
        functions = tuple(PARTS[part] if part in PARTS else (own or {})[part] for part in parts)
        widths = tuple(WIDTHS.get(part, 1) for part in parts)
        is_norm = parts == ("norm",)
        waits = TRIAL if is_norm and label in ("output", "output_grad") else NEVER
        entry = Entry(len(self.entries), self.width, parts, functions, widths, is_norm, site, label, waits)
        self.width += sum(widths)  # before the entry is there: another thread may let its row grow meanwhile
        self.entries.append(entry)
        return entry


def slots_of(part: str, entries: Sequence[Entry]) -> np.ndarray:
    """[entries] int64, where a part lies in a row; [entries, bins] of a histogram."""
    starts = np.array([e.start + sum(e.widths[: e.parts.index(part)]) for e in entries])
    width = WIDTHS.get(part, 1)
    return starts if width == 1 else starts[:, None] + np.arange(width)


def padded(values: np.ndarray, width: int) -> np.ndarray:
    """A row, or its counts of elements, with zeros up to `width`: it is shorter where the layout has grown since."""
    if len(values) >= width:
        return values
    longer = np.zeros(width, values.dtype)
    longer[: len(values)] = values
    return longer
