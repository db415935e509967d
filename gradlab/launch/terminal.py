"""Tables and texts of the terminal: aligned and coloured there, the same words without colour in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradlab.launch.hints import hint
from gradlab.launch.layer_table import Layer
from gradlab.launch.summary import Summary, number_text

_PIPE_WIDTH = 200
_SEVERITY_STYLES = {"error": "red", "warning": "yellow", "info": "cyan"}


def console(file: TextIO | None = None) -> Console:
    """The terminal; in a pipe wide enough that no line of a table is broken."""
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False)


def print_summary(summary: Summary, *, file: TextIO | None = None, board: str | None = None) -> None:
    """The closing summary of a run, ending with the command that shows it in TensorBoard, `board` where given."""
    out = console(file)
    out.print(f"\n[bold]{escape(summary.name)}[/bold]  {escape(summary.folder)}", soft_wrap=True)
    epochs = f", {_count(summary.epochs, 'epoch')}" if summary.epochs is not None else ""
    out.print(f"{_count(summary.steps, 'step')}{epochs} in {duration_text(summary.seconds)}")
    if summary.metrics:
        out.print("  ".join(f"{name} {number_text(value)}" for name, value in summary.metrics.items()), soft_wrap=True)
    if summary.answers:
        out.print(_answers_table(summary))
    if summary.layers:
        out.print(_layers_table(summary.layers))
    _print_findings(out, summary)
    out.print("open it in TensorBoard with:")
    out.print("  " + escape(board or hint("board", summary.folder)), style="bold", soft_wrap=True)


def plain_table(header: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """A table without lines whose cells are never broken."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def local_time(moment: str | datetime) -> str:
    """A moment on the clock of whoever reads it: `2026-11-28 01:14`."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def duration_text(seconds: float) -> str:
    """A duration for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _answers_table(summary: Summary) -> Table:
    table = plain_table(("answer", "value"))
    for name, text in summary.answers.items():
        table.add_row(escape(name), escape(text))
    return table


def _layers_table(layers: Sequence[Layer]) -> Table:
    """The layers; the update ratio has a column only where it was measured."""
    has_ratio = any(layer.update_ratio is not None for layer in layers)
    numbers = ["parameters", "gradient norm", *(["update ratio"] if has_ratio else [])]
    table = plain_table(["layer", "shape", *numbers, ""], right=numbers)
    for layer in layers:
        shape = " x ".join(str(size) for size in layer.shape) or "scalar"
        cells = [escape(layer.site), shape, f"{layer.parameters:,}", number_text(layer.gradient_norm)]
        cells += [number_text(layer.update_ratio)] if has_ratio else []
        style = "dim" if layer.mark == "frozen" else "yellow" if layer.mark else ""
        table.add_row(*cells, escape(layer.mark), style=style)
    return table


def _print_findings(out: Console, summary: Summary) -> None:
    for finding in summary.findings:
        style = _SEVERITY_STYLES.get(finding.severity, "")
        advice = f" {finding.advice}" if finding.advice else ""
        out.print(
            f"[{style}]{finding.severity}[/{style}] step {finding.step}: {escape(finding.message + advice)}"
            if style
            else f"{finding.severity} step {finding.step}: {escape(finding.message + advice)}",
            soft_wrap=True,
        )
    if not summary.findings:
        out.print("no findings")
