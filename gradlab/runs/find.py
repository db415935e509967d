"""From what a person types to a run folder.

A RUN is `@1` (the latest; `@2` the one before), an id, the beginning of an id or its four letters where only one run
has them, the name of an experiment (its latest run), or a path.
"""

from __future__ import annotations

import re
from pathlib import Path

from gradlab.errors import UnknownRunError, did_you_mean
from gradlab.runs.folder import RunFolder, read_from_disk

_ID = re.compile(r"\d{8}-\d{6}-[a-z]{4}")


def all_runs(root: Path) -> list[RunFolder]:
    """Every run below `root`, the latest first."""
    found = [RunFolder(path) for path in root.glob("*/*") if _ID.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda run: (run.started(), run.id), reverse=True)


def find_run(what: str, root: Path) -> RunFolder:
    """The run that `what` means.

    Raises:
        UnknownRunError: where it means none, or more than one.
    """
    runs = all_runs(root)
    if what.startswith("@"):
        return _by_age(what, runs, root)
    path = Path(what)
    if (path / "record.json").is_file():
        return RunFolder(path.resolve())
    name = read_from_disk(what) if not what.isascii() else what
    named = [run for run in runs if run.name in (what, name)]
    if named:
        return named[0]
    matches = [run for run in runs if run.id.startswith(what) or run.id.endswith("-" + what)] if what else []
    if not matches:
        raise UnknownRunError(_unknown(what, runs, root))
    if len(matches) > 1:
        listed = ", ".join(f"{run.id} ({run.name})" for run in matches[:5])
        more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
        raise UnknownRunError(f"{what!r} may mean {listed}{more}; type more of the id.")
    return matches[0]


def _by_age(what: str, runs: list[RunFolder], root: Path) -> RunFolder:
    """`@1`, `@2`, ..."""
    if not re.fullmatch(r"@[1-9]\d*", what):
        raise UnknownRunError(f"{what!r} is no run: @1 is the latest, @2 the one before.")
    position = int(what[1:])
    if position > len(runs):
        raise UnknownRunError(f"there is no run {what}: {root} holds {_count(len(runs))}.")
    return runs[position - 1]


def _unknown(what: str, runs: list[RunFolder], root: Path) -> str:
    """The sentence for a run that does not exist, with what comes nearest."""
    if not runs:
        return f"no run {what!r}: {root} holds no runs. Choose another place with --runs DIR."
    near = did_you_mean(what, dict.fromkeys([run.name for run in runs] + [run.id for run in runs]))
    latest = "" if near else f" The latest is {runs[0].name} ({runs[0].id}); `gradlab runs` lists them all."
    return f"no run {what!r} in {root}.{near}{latest}"


def _count(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"
