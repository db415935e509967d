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


def rules_options(command: F) -> F:
    """`--select` and `--ignore`: which rules are asked."""
    for name, text in (
        ("--ignore", "Rules that are not asked, as in GL301,GL401@encoder.*; also GRADLAB_IGNORE."),
        ("--select", "The rules that are asked, by code, beginning of codes or name; also GRADLAB_SELECT."),
    ):
        option = click.option(name, multiple=True, metavar="CODE[,CODE...]", callback=_rule_names, help=text)
        command = option(command)
    return command


def _rule_names(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The names of rules in what was given; refused where one is that of no rule."""
    if not texts:
        return ()
    from gradlab.diagnose.catalogue import objection
    from gradlab.diagnose.options import rule_part, words_of

    words = tuple(word for text in texts for word in words_of(text))
    for word in words:
        if why := objection(rule_part(word) if parameter.name == "ignore" else word):
            raise click.BadParameter(why, context, parameter)
    return words


def is_unicode(stream: Any) -> bool:
    """Whether a stream can take any character."""
    return str(getattr(stream, "encoding", "")).lower().replace("-", "").startswith("utf")


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty() and sys.stderr.isatty()
