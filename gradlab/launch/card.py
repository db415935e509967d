"""The card of a run: its settings, versions and origin as Markdown, for TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return f"| | |\n|---|---|\n{table}\n\n```yaml\n{resolved.strip()}\n```\n"


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
    rows = "\n".join(f"| {name} | {_cell(text)} |" for name, text in answers.items())
    return f"| answer | value |\n|---|---|\n{rows}\n"


def code_text(git: Mapping[str, Any] | None) -> str:
    """Branch and commit in a few words."""
    if git is None:
        return "no git repository"
    dirty = ", with uncommitted changes" if git.get("dirty") else ""
    return f"{git['branch']} {git['sha'][:10]}{dirty}"


def _cell(value: object) -> str:
    """A value inside a table row."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("|", "\\|").replace("\n", " ")
