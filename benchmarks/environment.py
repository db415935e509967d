"""What every result file says of the machine, and where it is put. No host names, no paths."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def environment(*packages: str) -> dict[str, str | int]:
    """The date, the machine, and the versions of Python, torch and the named packages (where they are installed)."""
    found: dict[str, str | int] = {
        "date": datetime.date.today().isoformat(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpus": os.cpu_count() or 0,
        "python": platform.python_version(),
    }
    for package in ("torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_result(claim: str, rows: Sequence[Mapping[str, Any]], *packages: str, **settings: Any) -> Path:
    """Write `results/<claim>-<date>.json`, print its rows as a table, and return the file.

    Args:
        claim: what is measured, as the benchmark's file is called.
        rows: one mapping a variant, all with the same keys; the first names the variant.
        packages: distributions whose versions matter.
        settings: sizes and numbers of repeats.
    """
    found = environment(*packages)
    path = RESULTS / f"{claim}-{found['date']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"environment": found, "settings": settings, "rows": list(rows)}, indent=1) + "\n")
    print_table(claim, rows)
    return path


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `rows`; numbers to the right, with four significant digits; only the column "note" is broken."""
    table = Table(title=title)
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int | float) else "left", no_wrap=key != "note")
    for row in rows:
        table.add_row(
            *(
                f"{value:,.4g}" if isinstance(value, float) else "" if value is None else f"{value}"
                for value in row.values()
            )
        )
    Console(width=160).print(table)


def _cpu() -> str:
    """The model of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
