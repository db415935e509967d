"""`gradlab doctor`: whether this machine can train, profile and show."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from gradlab.cli.options import is_unicode, runs_option

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "skip": "–"}
_ASCII_MARKS = {"ok": "+", "warn": "!", "fail": "x", "skip": "-"}
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": None}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of the checks.")
@runs_option
def doctor_command(as_json: bool, root: Path) -> None:
    """Check this machine.

    One line a check, with the fix. Exit code 3 where it cannot train, profile or show.
    """
    from gradlab.doctor import run_checks

    marks = _MARKS if is_unicode(sys.stdout) else _ASCII_MARKS
    results = []
    for result in run_checks(root):
        results.append(result)
        if not as_json:
            mark = click.style(marks[result.status], fg=_COLOURS[result.status])
            fix = f". {result.fix}" if result.fix else ""
            click.echo(f"{mark} {result.name:<18} {result.what}{fix}")
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    if any(result.status == "fail" for result in results):
        raise click.exceptions.Exit(3)
