"""Layers and findings on the terminal: aligned and coloured there, the same words without colour in a pipe.

Belongs here: what every end of a training prints alike. Does not: the rest of a run's summary (`launch.terminal`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradlab.finding import Finding
from gradlab.findings import Cause, causes, when
from gradlab.summary.layer_table import Layer
from gradlab.summary.numbers import count_text, number_text
from gradlab.values import few

MOST_CAUSES = 3
"""So many root findings the end of a training prints; people mend one thing at a time."""
_MOST_CODES = 6
_PIPE_WIDTH = 200
_SEVERITY_STYLES = {"error": "red", "warning": "yellow", "info": "cyan"}


def console(file: TextIO | None = None) -> Console:
    """The terminal; in a pipe wide enough that no line of a table is broken."""
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else _PIPE_WIDTH, highlight=False)


def plain_table(header: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """A table without lines whose cells are never broken."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def layers_table(layers: Sequence[Layer]) -> Table:
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


def print_findings(
    out: Console, findings: Sequence[Finding], *, num_steps: int, show: str | None = None, all_of_them: bool = False
) -> None:
    """The findings that no other explains, worst first, each with what follows from it.

    Args:
        out: the terminal.
        findings: those of the run, each in its newest state.
        num_steps: of the run: a finding that was not seen any more at its end says until when.
        show: the command that prints all; None: there is none.
        all_of_them: all causes and all symptoms, with the numbers that they rest on.
    """
    if not findings:
        out.print("no findings")
        return
    found = causes(findings)
    shown = found if all_of_them else found[:MOST_CAUSES]
    for cause in shown:
        _print_cause(out, cause, num_steps, in_full=all_of_them)
    others = [one.finding for one in found[len(shown) :]]
    if others:
        names = few((_name(one) for one in others), _MOST_CODES)
        out.print(f"and {count_text(len(others), 'finding')} more: {escape(names)}", soft_wrap=True)
    if show is not None:
        out.print(f"all of them, with their numbers: [bold]{escape(show)}[/bold]", soft_wrap=True)


def print_end(
    title: str,
    *,
    layers: Sequence[Layer],
    findings: Sequence[Finding],
    num_steps: int,
    logdir: Path,
    file: TextIO | None = None,
) -> None:
    """The end of a training in a plain loop: its layers, its findings, and the command that shows all of it."""
    out = console(file)
    out.print(f"\n[bold]{escape(title)}[/bold]  {escape(str(logdir))}", soft_wrap=True)
    out.print(count_text(num_steps, "step"))
    if layers:
        out.print(layers_table(layers))
    print_findings(out, findings, num_steps=num_steps)
    print_board(out, f"tensorboard --logdir {shlex.quote(str(logdir))}")


def print_board(out: Console, command: str) -> None:
    """The command that opens TensorBoard."""
    out.print("open it in TensorBoard with:")
    out.print("  " + escape(command), style="bold", soft_wrap=True)


def _print_cause(out: Console, cause: Cause, num_steps: int, *, in_full: bool) -> None:
    one = cause.finding
    _print_sentence(out, one, num_steps)
    if in_full:
        _print_details(out, one, "  ")
    if in_full:
        for symptom in cause.symptoms:
            out.print("  explains ", end="")
            _print_sentence(out, symptom, num_steps)
            _print_details(out, symptom, "    ")
    elif cause.symptoms:
        names = few((f"{_name(symptom)} ({when(symptom, num_steps)})" for symptom in cause.symptoms), _MOST_CODES)
        out.print(f"  explains {escape(names)}", soft_wrap=True)


def _print_sentence(out: Console, one: Finding, num_steps: int) -> None:
    style = _SEVERITY_STYLES.get(one.severity, "")
    head = f"{one.severity} {one.code}".rstrip()
    styled = f"[{style}]{escape(head)}[/{style}]" if style else escape(head)
    text = " ".join(filter(None, (one.message, one.remedy)))
    out.print(f"{styled} {when(one, num_steps)}: {escape(text)}", soft_wrap=True)


def _print_details(out: Console, one: Finding, indent: str) -> None:
    where = few(one.sites, _MOST_CODES)
    numbers = ", ".join(f"{name} {number_text(value)}" for name, value in one.evidence.items())
    details = "; ".join(filter(None, (f"{one.name}, {one.certainty}", where and f"at {where}", numbers)))
    out.print(f"[dim]{indent}{escape(details)}[/dim]", soft_wrap=True)


def _name(one: Finding) -> str:
    return f"{one.code} {one.name}".strip()
