"""The folder of a training's event file, who writes it, and the sink that does.

One folder never holds two trainings that both begin at step 0. Two of them make one zigzag line in TensorBoard, as of a
notebook cell that is run twice; and of two event files that are being written in one folder it reads one. A training
that goes on with an earlier one (`first_step=`) joins it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from gradlab.distributed import rank_in_group
from gradlab.errors import EventError, warn
from gradlab.sinks import Sink


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


def is_written_here(logdir: Path, *, across_ranks: bool | None) -> bool:
    """Whether this rank writes an event file: rank 0, or each one where `across_ranks` is False. None: rank 1 warns."""
    rank = rank_in_group()
    if rank == 1 and across_ranks is None:
        warn(
            f"rank 0 alone writes into {logdir}, what it sees itself; across_ranks=True makes its numbers those of all "
            f"ranks, across_ranks=False lets each rank write, into a logdir of its own."
        )
    return rank == 0 or across_ranks is False


def event_file_sink(folder: Path) -> Sink:
    """A new event file in a folder, as a sink; what writes it is imported only where there is one."""
    from gradlab.events import EventWriter
    from gradlab.sinks import TensorBoardSink

    return TensorBoardSink(EventWriter(folder))


def _is_used(folder: Path, others: set[Path]) -> bool:
    return folder.resolve() in others or any(map(_has_series, folder.glob("events.out.tfevents.*.gradlab")))


def _has_series(file: Path) -> bool:
    """Whether an event file of ours has a value; a training that ended before its first step left none."""
    from gradlab.events.reader import read_events

    try:
        return next(read_events(file), None) is not None
    except (EventError, OSError):
        return True
