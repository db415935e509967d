"""Whether the event files of a run are whole: what TensorBoard skips in silence, said in a sentence."""

from __future__ import annotations

from pathlib import Path

from gradlab.errors import EventError
from gradlab.events import event_files
from gradlab.events.tfrecord import read_records

MOST_BYTES = 256 * 2**20
"""Files beyond are not looked through: it takes about a second."""


def damage(folder: Path | None) -> list[str]:
    """A sentence for each damaged event file of a run."""
    found = []
    for file in event_files(folder) if folder is not None else []:
        try:
            if file.stat().st_size <= MOST_BYTES:
                for _ in read_records(file):
                    pass
        except EventError as error:
            found.append(str(error).replace(f"{file}", file.name))
        except OSError:
            continue
    return found
