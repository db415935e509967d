"""A run on several devices: Lightning starts the same command once more for each further rank, in the same folder.

Rank zero makes the folder and does all the writing; the others find it in their environment and only train.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradlab.errors import UsageError
from gradlab.runs.folder import RunFolder

_FOLDER = "GRADLAB_RUN_FOLDER"


def own_rank() -> int:
    """This process's rank among those of its node; 0 where there is one process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def announced(folder: RunFolder) -> Iterator[None]:
    """Tell the processes that start during the `with` block where the run is."""
    os.environ[_FOLDER] = str(folder.path.resolve())
    try:
        yield
    finally:
        del os.environ[_FOLDER]


def announced_folder() -> RunFolder:
    """The run that this process takes part in.

    Raises:
        UsageError: where nobody has told.
    """
    if _FOLDER not in os.environ:
        raise UsageError(
            "gradlab run starts the processes of further devices itself: call it once, without torchrun, "
            "and say trainer.devices=N."
        )
    return RunFolder(Path(os.environ[_FOLDER]))
