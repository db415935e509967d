"""`gradlab show`: one run, as its closing summary or one of its files."""

from __future__ import annotations

from pathlib import Path

import click

from gradlab.cli.options import runs_option
from gradlab.errors import MachineError, RunError
from gradlab.runs.find import find_run
from gradlab.runs.folder import RunFolder


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
@runs_option
def show_command(run: str, what: str | None, html: Path | None, root: Path) -> None:
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
    from gradlab.launch.summary import load_summary
    from gradlab.launch.terminal import local_time, print_summary

    ended = folder.read_exit()
    reason = f": {ended['reason']}" if ended and ended["reason"] != "done" else ""
    click.echo(f"{folder.name}  {folder.id}  {local_time(folder.started())}  {folder.status()}{reason}")
    summary = load_summary(folder)
    if summary is not None:
        print_summary(summary)


def _write_report(folder: RunFolder, path: Path) -> None:
    """Write a run's report and say how large it is."""
    from gradlab.board.html_report import report

    text = report(folder.events, f"{folder.name}/{folder.id}")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}.") from None
    click.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def _read(folder: RunFolder, path: Path) -> str:
    """The text of one of a run's files."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{folder.name} ({folder.id}) has no {path.name}: {error.strerror}.") from None
