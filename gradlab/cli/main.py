"""The `gradlab` command: the table of its subcommands, and what an error looks like on the terminal.

A subcommand's module is imported when it is used or listed; none of them imports anything heavy before it runs.
"""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Any

import click

import gradlab
from gradlab.cli.options import is_unicode
from gradlab.errors import GradlabError, did_you_mean

_COMMANDS = {
    "run": "gradlab.cli.run",
    "attach": "gradlab.cli.attach",
    "check": "gradlab.cli.check",
    "new": "gradlab.cli.new",
    "runs": "gradlab.cli.runs",
    "show": "gradlab.cli.show",
    "jacobian": "gradlab.cli.jacobian",
    "rules": "gradlab.cli.rules",
    "profile": "gradlab.cli.profile",
    "board": "gradlab.cli.board",
    "doctor": "gradlab.cli.doctor",
}
"""Command -> the module that holds it, as an attribute named `<command>_command`. Listed in this order."""


class ReportedError(click.ClickException):
    """An error that gradlab raised on purpose: its text on stderr, its own exit code."""

    def __init__(self, error: GradlabError) -> None:
        super().__init__("\n".join([str(error), *getattr(error, "__notes__", ())]))
        self.exit_code = error.exit_code  # type: ignore[misc]  # a class variable in click

    def show(self, file: Any = None) -> None:
        """Print the text as it is: experiment files' problems bring their own form."""
        click.echo(self.format_message(), err=True, file=file)


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them on demand."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, on a terminal of any encoding."""
        for stream in (sys.stdout, sys.stderr):
            _escape_what_is_missing(stream)
        return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported now."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown command with the nearest known ones."""
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            raise click.UsageError(f"No such command {args[0]!r}.{did_you_mean(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; gradlab's own errors become their text, all others keep their traceback."""
        try:
            return super().invoke(ctx)
        except GradlabError as error:
            raise ReportedError(error) from error
        except KeyboardInterrupt as error:  # of which click would make exit code 1
            raise click.exceptions.Exit(130) from error


def _escape_what_is_missing(stream: Any) -> None:
    """Let a character that the terminal's encoding lacks, as in C or Latin-1, be written as `\\u2713`."""
    if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or not is_unicode(stream)):
        stream.reconfigure(errors="backslashreplace")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gradlab.__version__, prog_name="gradlab")
def main() -> None:
    """Train, and see what happens inside backward()."""
