"""Which folder the series of a training go into: one folder never holds two trainings that both begin at step 0.

Two of them make one zigzag line in TensorBoard, as of a notebook cell that is run twice; and of two event files that
are being written in one folder it reads one. A training that goes on with an earlier one (`first_step=`) joins it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from gradlab.errors import EventError, warn


def folder_for(logdir: Path, *, first_step: int, taken: Iterable[Path] = ()) -> Path:
    """The folder, or the first free one beside it (`runs/x-2`), which one line says.

    Args:
        logdir: what was asked for.
        first_step: of the training.
        taken: folders into which others are writing now.
    """
    others = {folder.resolve() for folder in taken}
    if first_step > 0 or not _is_used(logdir, others):
        return logdir
    beside = (logdir.with_name(f"{logdir.name}-{number}") for number in itertools.count(2))
    folder = next(one for one in beside if not _is_used(one, others))
    warn(
        f"{logdir} has the series of another training, so those of this one are in {folder}. To go on with the "
        f"earlier one, give the number of the next step as first_step=."
    )
    return folder


def _is_used(folder: Path, others: set[Path]) -> bool:
    return folder.resolve() in others or any(map(_has_series, folder.glob("events.out.tfevents.*.gradlab")))


def _has_series(file: Path) -> bool:
    """Whether an event file of ours has a value; a training that ended before its first step left none."""
    from gradlab.events.reader import read_events

    try:
        return next(read_events(file), None) is not None
    except (EventError, OSError):
        return True
