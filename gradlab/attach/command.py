"""The command that `gradlab attach` becomes: the script's own, in an environment that brings gradlab along."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradlab.attach.options import VARIABLE, AttachOptions
from gradlab.diagnose.options import IGNORE, SELECT, words_of
from gradlab.errors import UsageError, did_you_mean

SITE = Path(__file__).parent / "site"
"""A folder with nothing but a `sitecustomize.py`, which Python imports before anything else."""


def command_of(script: str, arguments: Sequence[str], *, is_module: bool) -> list[str]:
    """What is run: `python SCRIPT`, `python -m MODULE`, or a program such as `torchrun` or a shell script as it is.

    Raises:
        UsageError: there is no such file and no such program.
    """
    if is_module:
        return [*_python(), "-m", script, *arguments]
    path = Path(script)
    if path.is_dir() or (path.is_file() and not _is_program(path)):
        return [*_python(), script, *arguments]
    program = shutil.which(script)
    if program is not None:
        return [program, *arguments]
    raise UsageError(f"there is no script and no program {script!r}.{_near(path)}")


def environment_of(
    options: AttachOptions,
    environment: Mapping[str, str],
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> dict[str, str]:
    """The environment of the script: its own, and what makes every Python process in it come back to gradlab.

    Args:
        options: the settings.
        environment: the command's own.
        select: the rules that are asked, in place of those that the environment names.
        ignore: rules that are not, beside those that the environment names.
    """
    rules = {SELECT: ",".join(select)} if select else {}
    if ignore:
        rules[IGNORE] = ",".join((*words_of(environment.get(IGNORE, "")), *ignore))
    paths = [str(SITE), *filter(None, [environment.get("PYTHONPATH")])]
    quiet = {"KINETO_LOG_LEVEL": "6"} if options.profile is not None else {}  # else torch tells of each window
    return {**quiet, **environment, **rules, "PYTHONPATH": os.pathsep.join(paths), VARIABLE: options.to_text()}


def why_not_followed(command: Sequence[str]) -> str:
    """A sentence where a Python is started in a way in which it does not look for us; "" otherwise."""
    if not re.fullmatch(r"python[\d.]*t?", Path(command[0]).name):
        return ""
    arguments = iter(command[1:])
    for argument in arguments:
        if not argument.startswith("-") or argument in ("-", "-c", "-m"):
            return ""
        if argument in ("-W", "-X"):
            next(arguments, None)
        if (flags := re.match(r"-[A-Za-z]*?([SIE])", argument)) and not argument.startswith(("-W", "-X")):
            return f"nothing is watched: python -{flags[1]} imports no sitecustomize.py of others, which gradlab is."
    return ""


def _python() -> list[str]:
    """This interpreter, with the flags that it was started with."""
    return [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]


def _is_program(path: Path) -> bool:
    """Whether a file is run by something other than this Python: it can be executed and says by what."""
    if path.suffix in (".py", ".pyz", ".pyc") or not os.access(path, os.X_OK):
        return False
    with path.open("rb") as file:
        first = file.readline(200)
    return first.startswith(b"\x7fELF") or (first.startswith(b"#!") and b"python" not in first)


def _near(path: Path) -> str:
    """The files beside a missing one, and a hint where a module was meant."""
    try:
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()], most=1)
    except OSError:
        near = ""
    return near or " A module is run with -m, `gradlab attach -m package.train`."
