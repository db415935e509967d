"""`gradlab attach`: a training script that knows nothing of gradlab, watched."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradlab.cli.options import rules_options, runs_option
from gradlab.runs.folder import new_id

if TYPE_CHECKING:
    from gradlab.attach.options import AttachOptions

_LAUNCHERS = frozenset({"torchrun", "accelerate", "deepspeed", "torch.distributed.run", "python", "python3"})


@click.command(
    "attach", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, no_args_is_help=True
)
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as in `python -m`.")
@click.option(
    "--taps",
    multiple=True,
    metavar="GLOB[=OF[:STATS]]",
    help="What to watch, as in '*/relu*=output,output_grad:norm,zeros'; may be given again. Left out: the gradient "
    "norm of every parameter, on each of the first 100 steps and then on every tenth.",
)
@click.option("--every", type=click.IntRange(1), metavar="N", help="Look on every so many steps.")
@click.option("--profile", is_flag=True, help="Record a few early steps with torch.profiler.")
@click.option(
    "--across-ranks",
    is_flag=True,
    help="Log the numbers of all ranks together, sharded parameters too: one collective a logged step.",
)
@rules_options
@click.option(
    "--on-finding",
    metavar="WHAT",
    help="What is done at a finding above info: log it (where left out), profile three steps, or measure what helps to "
    "judge it (jacobian).",
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="The same settings as YAML: taps, profile, ..."
)
@click.option(
    "--logdir", type=click.Path(path_type=Path), metavar="DIR", help="Write event files here, without a run folder."
)
@runs_option
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def attach_command(
    module: bool,
    taps: tuple[str, ...],
    every: int | None,
    profile: bool,
    across_ranks: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    on_finding: str | None,
    config: Path | None,
    logdir: Path | None,
    root: Path,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run somebody's training script with gradlab on.

    For instance `gradlab attach --taps '*=output_grad' train.py --epochs 3`, `gradlab attach -m package.train` or
    `gradlab attach torchrun --nproc-per-node 2 train.py`. Options for gradlab stand before SCRIPT, all that follows is
    the script's. Its output, input, signals and exit code are its own; the summary goes to standard error.
    """
    from gradlab.attach.command import command_of, environment_of, why_not_followed

    command = command_of(script, arguments, is_module=module)
    settings = _settings(config, taps, every, profile)
    if logdir is None and "logdir" in settings:
        logdir = Path(settings["logdir"])
    settings.pop("logdir", None)
    settings["across_ranks"] = across_ranks
    rules = _rules(settings, select, ignore, on_finding)
    options = _options(settings, script, command, logdir, root)
    if why := why_not_followed(command):
        click.echo(f"gradlab: {why}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment_of(options, os.environ, **rules))


def _settings(config: Path | None, taps: tuple[str, ...], every: int | None, profile: bool) -> dict[str, Any]:
    """The settings of the file, where there is one, and those of the flags above them."""
    from gradlab.attach.options import taps_of
    from gradlab.profiling.options import Profile

    settings: dict[str, Any] = {}
    if config is not None:
        from gradlab.config.attach_file import load_attach

        settings = load_attach(config)
    if every is not None and settings.get("taps") and not taps:
        raise click.UsageError("--every is for the taps of the command line; those of a file have their own `every`.")
    if taps or not settings.get("taps"):
        settings["taps"] = taps_of(taps, every)
    if profile:
        settings.setdefault("profile", Profile())
    return settings


def _rules(
    settings: dict[str, Any], select: tuple[str, ...], ignore: tuple[str, ...], on_finding: str | None
) -> dict[str, tuple[str, ...]]:
    """Which rules are asked and which are not, by the flags and the file; its other settings of rules go in place."""
    given = settings.pop("diagnose", None)
    if given is not None:
        settings["limits"], settings["on_finding"] = dict(given.limits), given.on_finding
    if on_finding is not None:
        settings["on_finding"] = _offered(on_finding)
    return {
        "select": select or (_several(given.select) if given else ()),
        "ignore": (*(_several(given.ignore) if given else ()), *ignore),
    }


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _offered(on_finding: str) -> str:
    """The reaction, where there is one of that name that `attach` offers."""
    from gradlab.config.attach_file import NOT_ATTACHED
    from gradlab.diagnose.options import REACTIONS
    from gradlab.errors import did_you_mean

    offered = [word for word in REACTIONS if word not in dict(NOT_ATTACHED)]
    if on_finding in offered:
        return on_finding
    why = dict(NOT_ATTACHED).get(on_finding) or f"it may be {', '.join(offered)}, not {on_finding!r}."
    raise click.UsageError(f"--on-finding: {why}{did_you_mean(on_finding, offered, most=1)}")


def _options(
    settings: dict[str, Any], script: str, command: list[str], logdir: Path | None, root: Path
) -> AttachOptions:
    from gradlab.attach.options import AttachOptions

    return AttachOptions(
        command_pid=os.getpid(),
        began=time.time(),
        command=tuple(command),
        run="" if logdir else str((root / _name(script, command[1:]) / new_id()).resolve()),
        logdir=str(logdir.resolve()) if logdir else "",
        **settings,
    )


def _name(script: str, arguments: Sequence[str]) -> str:
    """The name of the script's runs: its own, without folder and ending; of a launcher, that of what it launches."""
    scripts = [word for word in arguments if word.endswith(".py")] if Path(script).name in _LAUNCHERS else []
    return Path([*scripts, script][0]).resolve().stem or "script"
