"""What is printed on the terminal during a run, and what goes to `log.txt` alone.

Everything that any library logs or warns about is written to the log. The terminal gets warnings that concern the
user; Lightning's tips, its banner of devices and its advice on workers stay in the log. Of a failure it gets the part
of the traceback that lies in the user's code.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from lightning_fabric.utilities.warnings import PossibleUserWarning

_LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics")
_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric", "lightning")


@contextmanager
def messages_to(path: Path) -> Iterator[logging.Logger]:
    """Send log records and warnings to `path` for the time of a `with` block; yields the logger to write with."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, logger = logging.getLogger(), logging.getLogger("gradlab")
    level = logger.level
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with quiet_lightning(), warnings.catch_warnings():
            _divert_warnings(logger)
            yield logger
    finally:
        logger.setLevel(level)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Take away the handlers with which Lightning prints; its records go to the root logger's handlers alone."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.NullHandler()], True
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def _divert_warnings(logger: logging.Logger) -> None:
    """Log every warning, and show on the terminal those that concern the user. Inside `catch_warnings` alone."""
    for module in _LIGHTNING:
        warnings.filterwarnings("default", module=rf"{module}(\.|$)")
    warnings.filterwarnings("default", category=PossibleUserWarning)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logger.warning("%s at %s:%d: %s", category.__name__, filename, lineno, message)
        if not _is_noise(category, filename):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def _is_noise(category: type[Warning], filename: str) -> bool:
    """Whether a warning is about Lightning's own affairs, or advice that may not apply."""
    return issubclass(category, PossibleUserWarning) or any(f"/{module}/" in filename for module in _LIGHTNING)


_CALLERS = ("gradlab", "pytorch_lightning", "lightning_fabric", "torch", "contextlib")


def users_traceback(error: BaseException) -> str:
    """The traceback of `error` without the frames of gradlab and Lightning that lead to the user's code.

    All of it where no code of the user takes part.
    """
    start = _first_of_user(error.__traceback__) or error.__traceback__
    return "".join(traceback.format_exception(type(error), error, start))


def _first_of_user(frames: TracebackType | None) -> TracebackType | None:
    """The first frame of a traceback that lies in no package which calls users' code."""
    while frames is not None:
        name = frames.tb_frame.f_globals.get("__name__", "")
        # Models that ship with gradlab are users' code as much as anybody's.
        if name.startswith(("gradlab.models", "gradlab.data")) or name.partition(".")[0] not in _CALLERS:
            return frames
        frames = frames.tb_next
    return None
