"""`gradlab board`: TensorBoard on the runs, opened at a useful place."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import click

from gradlab.cli.options import on_terminal, runs_option
from gradlab.errors import UnknownRunError
from gradlab.runs.find import all_runs, find_run
from gradlab.runs.folder import RunFolder

_LOOK_AGAIN_SECONDS = 2.0
_EVENTS_READ = 1000


@click.command("board")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--port", type=click.IntRange(1, 65535), help="Where to listen; a free port where left out.")
@click.option("--no-open", is_flag=True, help="Only print the address.")
@runs_option
def board_command(runs: tuple[str, ...], port: int | None, no_open: bool, root: Path) -> None:
    """Start TensorBoard on the runs.

    On those that are named, else on all, also those that start later. It listens on 127.0.0.1 alone; Ctrl-C stops it.
    """
    chosen = [find_run(run, root) for run in runs] or all_runs(root)
    if not chosen:
        raise UnknownRunError(f"{root} holds no runs. Choose another place with --runs DIR.")
    from gradlab.launch.tensorboard import address, free_port, link_runs, serving

    port = port or free_port()
    with (
        _stops_on_signals(),
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="gradlab-board-", ignore_cleanup_errors=True) as logdir,
    ):
        link_runs(Path(logdir), chosen)
        with serving(Path(logdir), port) as server:
            url = address(port, images=_jacobian_images(chosen))
            click.echo(f"{len(chosen)} run{'s' * (len(chosen) > 1)}; Ctrl-C stops\n{url}")
            if on_terminal() and not no_open:
                webbrowser.open(url)
            while not _ended(server):
                link_runs(Path(logdir), chosen if runs else all_runs(root))


def _ended(server: subprocess.Popen[bytes]) -> bool:
    """Whether the server has ended by itself, after a little while."""
    try:
        server.wait(_LOOK_AGAIN_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


@contextlib.contextmanager
def _stops_on_signals() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that nothing is left running.

    SIGINT is set too: a shell starts its background jobs with it ignored, and Python then leaves it so.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _jacobian_images(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    """Run and tag, as TensorBoard names them, of the latest run's first Jacobian image, where it has one."""
    from gradlab.events import event_files, read_events

    for run in runs[:1]:
        for file in event_files(run.events):
            # A slice that is logged at all is logged on the first step.
            for event in islice(read_events(file), _EVENTS_READ):
                if event.plugin_name == "images" and event.tag.startswith("jacobian/"):
                    return [(f"{run.name}/{run.id}", event.tag)]
    return []
