"""The card of a run: its settings, versions and origin as Markdown, for TensorBoard's Text tab."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradlab.events.markdown import cell
from gradlab.runs.folder import RunFolder


def run_card(folder: RunFolder, record: Mapping[str, Any], resolved: str) -> str:
    """What the run is: where it lies, the command, the code, the versions, every setting."""
    rows = {
        "run": f"{folder.name} / {folder.id}",
        "started": record["started"],
        "command": " ".join(record["argv"]),
        "code": code_text(record["git"]),
        "seed": record["seed"],
        "host": record["host"]["name"],
        "devices": ", ".join(device["name"] for device in record["devices"]) or f"{record['host']['cpus']} CPUs",
        **{name: version for name, version in record["versions"].items() if version},
    }
    table = "\n".join(f"| {name} | {cell(value)} |" for name, value in rows.items())
    settings = resolved.strip()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", settings)), default=0))
    return f"| | |\n|---|---|\n{table}\n\n{fence}yaml\n{settings}\n{fence}\n"


def hyperparameters(experiment: Any) -> dict[str, Any]:
    """What makes one run of an experiment differ from another, under the names that overrides have."""
    classes = {name: getattr(experiment, name) for name in ("model", "data", "optimizer")}
    given = {
        name: {"class_path": spec.class_path, "init_args": dict(spec.init_args)}
        for name, spec in classes.items()
        if spec
    }
    return {"seed": experiment.seed, **given, "trainer": dict(experiment.trainer)}


def answers_card(answers: Mapping[str, str]) -> str:
    """A model's answers as a table."""
    rows = "\n".join(f"| {cell(name)} | {cell(text)} |" for name, text in answers.items())
    return f"| answer | value |\n|---|---|\n{rows}\n"


def code_text(git: Mapping[str, Any] | None) -> str:
    """Branch and commit in a few words."""
    if git is None:
        return "no git repository"
    dirty = ", with uncommitted changes" if git.get("dirty") else ""
    return f"{git['branch']} {git['sha'][:10]}{dirty}"
