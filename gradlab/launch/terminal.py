"""The closing summary of a run on the terminal, and the clock of whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TextIO

from rich.markup import escape
from rich.table import Table

from gradlab.finding import Finding
from gradlab.findings import latest
from gradlab.launch.hints import hint
from gradlab.launch.summary import Summary
from gradlab.summary.numbers import count_text, duration_text, number_text
from gradlab.summary.terminal import console, layers_table, plain_table, print_board, print_findings

__all__ = ["console", "duration_text", "local_time", "plain_table", "print_findings_of", "print_summary"]


def print_summary(
    summary: Summary, *, file: TextIO | None = None, board: str | None = None, all_findings: bool = False
) -> None:
    """The closing summary of a run, ending with the command that shows it in TensorBoard, `board` where given.

    Args:
        summary: what there is to say.
        file: the terminal, stdout where left out.
        board: the command for TensorBoard, where it lies in no run folder.
        all_findings: print all findings with their numbers, instead of the first three causes.
    """
    out = console(file)
    out.print(f"\n[bold]{escape(summary.name)}[/bold]  {escape(summary.folder)}", soft_wrap=True)
    epochs = f", {count_text(summary.epochs, 'epoch')}" if summary.epochs is not None else ""
    out.print(f"{count_text(summary.steps, 'step')}{epochs} in {duration_text(summary.seconds)}")
    if summary.metrics:
        out.print("  ".join(f"{name} {number_text(value)}" for name, value in summary.metrics.items()), soft_wrap=True)
    if summary.answers:
        out.print(_answers_table(summary.answers))
    if summary.layers:
        out.print(layers_table(summary.layers))
    show = None if all_findings or board else hint("show", summary.folder)
    print_findings(out, latest(summary.findings), num_steps=summary.steps, show=show, all_of_them=all_findings)
    print_board(out, board or hint("board", summary.folder))


def print_findings_of(findings: Sequence[Finding], *, file: TextIO | None = None) -> None:
    """All findings of a run that has not ended by itself, with their numbers."""
    last = max((one.last_step or one.first_step for one in findings), default=0)
    print_findings(console(file), findings, num_steps=last + 1, all_of_them=True)


def local_time(moment: str | datetime) -> str:
    """A moment on the clock of whoever reads it: `2026-11-28 01:14`."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _answers_table(answers: Mapping[str, str]) -> Table:
    table = plain_table(("answer", "value"))
    for name, text in answers.items():
        table.add_row(escape(name), escape(text))
    return table
