"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def runs_option(command: F) -> F:
    """`--runs DIR`, where runs lie."""
    option = click.option(
        "--runs",
        "root",
        type=click.Path(path_type=Path),
        envvar="GRADLAB_RUNS",
        default=Path("runs"),
        show_default=True,
        metavar="DIR",
        help="Where runs lie; also GRADLAB_RUNS.",
    )
    return option(command)


def is_unicode(stream: Any) -> bool:
    """Whether a stream can take any character."""
    return str(getattr(stream, "encoding", "")).lower().replace("-", "").startswith("utf")


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty() and sys.stderr.isatty()
