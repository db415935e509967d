"""`gradlab profile`: ask a running run for a profile window, or show the windows that a run has."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from gradlab.cli.options import runs_option
from gradlab.errors import ProfileError, RunError
from gradlab.profiling.files import read_summary, window_named, windows_in
from gradlab.profiling.requests import read_answer, request_window, withdraw_request
from gradlab.runs.find import find_run
from gradlab.runs.folder import RunFolder

_LOOK_SECONDS = 0.2


class _AskOrShow(click.Group):
    """`gradlab profile RUN` asks; `gradlab profile show RUN` shows."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """What is no subcommand is a run to be asked."""
        if args and args[0] not in self.commands:
            return "ask", self.commands["ask"], args
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the options of `ask` to it, wherever they are."""
        if args and args[0] not in self.commands and not {"-h", "--help"} & set(args):
            args = ["ask", *args]
        return super().parse_args(ctx, args)


@click.group("profile", cls=_AskOrShow)
def profile_command() -> None:
    """Profile a running run, or show its profiles.

    `gradlab profile RUN` asks a run that trains at this moment for a window of a few steps and shows it;
    `gradlab profile show RUN` shows a window that is there. RUN is its id, the beginning or the four letters of it,
    the name of an experiment (its latest run), @1 for the latest of all, or a path: also a `logdir` of your own loop.
    """


@profile_command.command("ask", hidden=True)
@click.argument("run", default="@1")
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="How many steps to record.")
@click.option(
    "--patience", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait for an answer."
)
@runs_option
def ask_command(run: str, steps: int, patience: float, root: Path) -> None:
    """Ask a run that trains at this moment for a window, and show it."""
    folder = _profiles_of_running(run, root)
    request = request_window(folder, active=steps)
    click.echo(f"asked for {steps} steps; waiting for the run to record them", err=True)
    try:
        answer = _wait_for(folder, request, patience)
    finally:
        withdraw_request(folder, request)
    if answer is None:
        raise ProfileError(
            f"no answer in {patience:g} s. The run looks for requests after each training step, once a second at most: "
            "a long step, a validation or a start-up needs more --patience."
        )
    if "error" in answer:
        raise ProfileError(answer["error"])
    _show(folder / answer["window"], rank=0, top=15, as_json=False)


@profile_command.command("show")
@click.argument("run", default="@1")
@click.argument("window", required=False)
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Rows of each table.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Whose summary.")
@click.option("--json", "as_json", is_flag=True, help="summary.json itself.")
@runs_option
def show_command(run: str, window: str | None, top: int, rank: int, as_json: bool, root: Path) -> None:
    """Show a profile window of a run: the newest, or WINDOW by its name or the number of its first step."""
    folder = _profiles(run, root)
    chosen = window_named(folder, window)
    _show(chosen, rank=rank, top=top, as_json=as_json)
    names = [other.name for other in windows_in(folder) if other != chosen]
    if names and not as_json:
        click.echo(f"other windows: {', '.join(names)}")


def _show(window: Path, *, rank: int, top: int, as_json: bool) -> None:
    summary = read_summary(window, rank=rank)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    from gradlab.cli.profile_tables import print_window

    print_window(summary, window, top=top)


def _profiles(run: str, root: Path) -> Path:
    """The profile folder of a run, or of the log directory of a loop."""
    path = Path(run)
    if path.is_dir() and not (path / "record.json").is_file():
        return path if path.name == "profile" else path / "profile"
    return find_run(run, root).events / "profile"


def _profiles_of_running(run: str, root: Path) -> Path:
    folder = _profiles(run, root)
    owner = folder.parent.parent
    if (owner / "record.json").is_file():
        found = RunFolder(owner)
        status = found.status()
        if status != "running":
            raise RunError(
                f"{found.name} ({found.id}) is {status}; only a running run can be asked. `gradlab profile show "
                f"{found.id}` shows the windows that it has."
            )
    return folder


def _wait_for(folder: Path, request: str, patience: float) -> dict[str, str] | None:
    deadline = time.monotonic() + patience
    while (answer := read_answer(folder, request)) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return answer
