"""`gradlab run`: one experiment in this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradlab.cli.options import on_terminal, runs_option
from gradlab.launch.hints import hint

if TYPE_CHECKING:
    from gradlab.launch.outcome import Outcome


@click.command("run")
@click.argument("experiment", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume", metavar="RUN", help="Go on with a run that was stopped, killed or failed.")
@click.option("--dry-run", is_flag=True, help="Check everything, train nothing; the same as `gradlab check`.")
@click.option("--print-config", is_flag=True, help="Print the experiment with overrides and defaults filled in.")
@runs_option
def run_command(
    experiment: Path | None,
    overrides: tuple[str, ...],
    resume: str | None,
    dry_run: bool,
    print_config: bool,
    root: Path,
) -> None:
    """Run one experiment.

    For instance `gradlab run experiments/digits.yaml trainer.max_epochs=2`. Everything is checked before anything
    runs. Exit codes: 0 done, 1 the run failed, 2 the experiment or the command is wrong, 3 this machine cannot do it,
    75 stopped with a checkpoint (resumable), 79 stopped by a finding (`diagnose.on_finding`), 130 interrupted.
    """
    _without_native_chatter()
    if resume is not None:
        if experiment is not None or dry_run or print_config:
            raise click.UsageError("--resume takes no experiment and no settings: a run goes on with those it had.")
        _finish(_resume(resume, root))
    elif experiment is None:
        raise click.UsageError("Which experiment? `gradlab new` lists templates; `--resume RUN` goes on with a run.")
    elif print_config:
        from gradlab.config.load import load

        click.echo(load(experiment, overrides).resolved(), nl=False)
    elif dry_run:
        from gradlab.cli.check import report

        report(experiment, overrides)
    else:
        _finish(_start(experiment, overrides, root))


def _without_native_chatter() -> None:
    """Keep torch's C++ side from writing lines to the terminal at every profile window; before torch is imported.

    On a machine with an NVIDIA device its messages stay: they say where CUPTI fails.
    """
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _readable(experiment: Path) -> None:
    """Refuse a file that cannot be read as text at once, before torch is imported."""
    from gradlab.config.yaml.text import decode, read

    decode(experiment, read(experiment))


def _start(experiment: Path, overrides: tuple[str, ...], root: Path) -> Outcome:
    _readable(experiment)
    from gradlab.launch.run import Display, start

    return start(experiment, overrides, root=root, argv=sys.argv, display=Display(say=_say, bar=on_terminal()))


def _resume(run: str, root: Path) -> Outcome:
    from gradlab.runs.find import find_run

    folder = find_run(run, root)
    from gradlab.launch.run import Display, resume

    return resume(folder, argv=sys.argv, display=Display(say=_say, bar=on_terminal()))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _finish(outcome: Outcome) -> None:
    """Print how the run ended and leave with its code."""
    from gradlab.launch.terminal import print_summary

    if outcome.error is not None:
        from gradlab.launch.messages import users_traceback

        click.echo(users_traceback(outcome.error), err=True, nl=False)
    if outcome.summary is not None:
        print_summary(outcome.summary)
    if outcome.code != 0 and not outcome.follows:
        _say_why(outcome)
    if outcome.code != 0:
        raise click.exceptions.Exit(outcome.code)


def _say_why(outcome: Outcome) -> None:
    """Why the run did not finish, where to read more, and how it goes on."""
    reason = outcome.reason if outcome.error is None or outcome.explained else "the run failed"
    log = f"; the log is {outcome.folder.log}" if outcome.folder.log.is_file() else ""
    _say(reason.removesuffix(".") + log)
    if outcome.code in (75, 79, 130):
        _say(f"go on with: {hint('run --resume', outcome.folder.path)}")
