"""`gradlab show`: one run, as its closing summary, one of its files, or JSON; also while it is running."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradlab.cli.options import runs_option
from gradlab.errors import MachineError, RunError
from gradlab.runs.find import find_run
from gradlab.runs.folder import RunFolder, read_json

if TYPE_CHECKING:
    from gradlab.finding import Finding

_MOST_METRICS = 4


@click.command("show")
@click.argument("run", default="@1")
@click.option("--config", "what", flag_value="resolved", help="The experiment with every value, runnable.")
@click.option("--record", "what", flag_value="record", help="Command, code, versions, devices, seed.")
@click.option("--log", "what", flag_value="log", help="Log messages, warnings, the traceback of a failure.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the views of the Gradients tab as one file that opens without a server or a network.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the state and all findings as JSON, causes first.")
@runs_option
def show_command(run: str, what: str | None, html: Path | None, as_json: bool, root: Path) -> None:
    """Show one run.

    RUN is its id, the beginning or the four letters of it, the name of an experiment (its latest run), a path, or @1
    for the latest of all (the default).
    """
    folder = find_run(run, root)
    if what is not None:
        click.echo(_read(folder, getattr(folder, what)), nl=False)
        return
    if html is not None:
        _write_report(folder, html)
        return
    if as_json:
        click.echo(json.dumps(_as_json(folder), indent=2, ensure_ascii=False))
        return
    from gradlab.launch.summary import load_summary
    from gradlab.launch.terminal import local_time, print_findings_of, print_summary

    ended = folder.read_exit()
    reason = f": {ended['reason']}" if ended and ended["reason"] != "done" else ""
    click.echo(f"{folder.name}  {folder.id}  {local_time(folder.started())}  {folder.status()}{reason}")
    summary, findings = load_summary(folder), findings_of(folder)
    if summary is not None and folder.status() != "running":
        print_summary(replace(summary, findings=tuple(findings)), all_findings=True)
    elif folder.findings.is_file():
        print_findings_of(findings)


def findings_of(folder: RunFolder) -> list[Finding]:
    """The findings of a run, each in its newest state: those of its file, else of its summary."""
    from gradlab.findings import latest
    from gradlab.launch.summary import load_summary
    from gradlab.sinks.findings_file import read_findings

    found = read_findings(folder.findings)
    if found is None:
        summary = load_summary(folder)
        found = list(summary.findings) if summary is not None else []
    return latest(found)


def _as_json(folder: RunFolder) -> dict[str, Any]:
    """What other programs ask of a run, whether it has ended or not."""
    from gradlab.finding import finding_record
    from gradlab.findings import ranked

    ended = folder.read_exit() or {}
    return {
        "run": folder.id,
        "name": folder.name,
        "folder": str(folder.path),
        "state": folder.status(),
        "reason": ended.get("reason"),
        "steps": ended.get("steps"),
        "findings": [finding_record(one) for one in ranked(findings_of(folder))],
        "abstained": read_json(folder.abstained) or (read_json(folder.summary) or {}).get("abstained", {}),
    }


def _write_report(folder: RunFolder, path: Path) -> None:
    """Write a run's report and say how large it is."""
    from gradlab.board.html_report import report

    text = report(folder.events, f"{folder.name}/{folder.id}", _about(folder))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}.") from None
    click.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def _about(folder: RunFolder) -> str:
    """What was trained and for how long, in a sentence; "" of a run that has left no summary."""
    from gradlab.launch.summary import load_summary
    from gradlab.summary.numbers import count_text, duration_text, number_text

    summary = load_summary(folder)
    if summary is None:
        return ""
    numbers = sum(layer.parameters for layer in summary.layers)
    size = f", {numbers:,} parameters in {count_text(len(summary.layers), 'tensor')}" if summary.layers else ""
    epochs = f" ({count_text(summary.epochs, 'epoch')})" if summary.epochs is not None else ""
    last = ", ".join(f"{name} {number_text(value)}" for name, value in list(summary.metrics.items())[:_MOST_METRICS])
    told = f" and ended with {last}" if last else ""
    steps, took = count_text(summary.steps, "step"), duration_text(summary.seconds)
    state = "" if folder.status() == "done" else f" It is {folder.status()}."
    return f"{folder.name}{size}, was trained for {steps}{epochs} in {took}{told}.{state}"


def _read(folder: RunFolder, path: Path) -> str:
    """The text of one of a run's files."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{folder.name} ({folder.id}) has no {path.name}: {error.strerror}.") from None
