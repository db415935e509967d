"""`gradlab runs`: every run, its state and its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gradlab.cli.options import runs_option
from gradlab.runs.find import all_runs
from gradlab.runs.folder import STATUSES, RunFolder

_METRICS_SHOWN = 4


@click.command("runs")
@click.option("--state", type=click.Choice(STATUSES), help="Only runs in this state.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list, the latest run first.")
@runs_option
def runs_command(state: str | None, as_json: bool, root: Path) -> None:
    """List the runs."""
    rows = [row for row in map(describe_run, all_runs(root)) if state in (None, row["state"])]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _print(rows)
    else:
        click.echo(f"no {state + ' ' if state else ''}runs in {root}")


def describe_run(run: RunFolder) -> dict[str, Any]:
    """One run as plain values."""
    ended = run.read_exit() or {}
    return {
        "id": run.id,
        "name": run.name,
        "started": run.started().isoformat(),
        "state": run.status(),
        "code": ended.get("code"),
        "reason": ended.get("reason"),
        "attempt": run.attempt(),
        "steps": ended.get("steps"),
        "seconds": ended.get("seconds"),
        "findings": ended.get("findings"),
        "metrics": {name: finite(value) for name, value in ended.get("metrics", {}).items()},
        "path": str(run.path),
    }


def finite(value: float) -> float | None:
    """A number that JSON can hold."""
    return value if value == value and abs(value) != float("inf") else None


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape

    from gradlab.launch.terminal import console, duration_text, local_time, plain_table

    table = plain_table(("run", "name", "started", "state", "steps", "took", "metrics"), right=("steps", "took"))
    for row in rows:
        shown = list(row["metrics"].items())[:_METRICS_SHOWN]
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in shown if value is not None)
        took = "" if row["seconds"] is None else duration_text(row["seconds"])
        steps = "" if row["steps"] is None else str(row["steps"])
        started = local_time(row["started"])
        table.add_row(row["id"], escape(row["name"]), started, row["state"], steps, took, escape(metrics))
    console().print(table)
