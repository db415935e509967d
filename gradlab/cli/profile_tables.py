"""A profile window as tables on the terminal, from its summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradlab.launch.terminal import console, plain_table

_PHASES = ("data", "forward", "backward", "optimizer", "other")
_LONGEST_NAME = 60
_CAUSES = {
    "data": "waiting for data",
    "sync": "after the host waited for it",
    "host": "the host launched late",
    "queue": "launched in time: dependencies, launch gaps",
}


def print_window(summary: Mapping[str, Any], window: Path, *, top: int) -> None:
    """Everything that a summary says, the verdict first."""
    out = console()
    steps = [round(row["step"]) for row in summary["steps"]]
    which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    reason = summary["reason"]
    why = reason["kind"].replace("_", " ") + (f": {reason['detail']}" if reason["detail"] else "")
    out.print(f"\n[bold]{escape(window.name)}[/bold]  {which}, rank {summary['rank']}  ({escape(why)})", soft_wrap=True)
    out.print(escape(summary["verdict"]["sentence"]), style="bold", soft_wrap=True)
    for attempt in summary["verdict"]["attempts"]:
        out.print(f"  try {escape(attempt)}", soft_wrap=True)
    for note in summary["notes"]:
        out.print(f"note: {escape(note)}", soft_wrap=True)
    for title, table in _tables(summary, top):
        out.print(f"\n[bold]{title}[/bold]")
        out.print(table)
    _print_files(out, window)


def _tables(summary: Mapping[str, Any], top: int) -> list[tuple[str, Table]]:
    found = [("step, ms", _phases(summary))]
    if summary["ranks"]:
        found.append(("ranks, ms a step", _ranks(summary["ranks"])))
    if summary["modules"]:
        found.append(("modules, ms a step", _modules(summary, top)))
    found.append(("operators, ms a step", _operators(summary, top)))
    if summary["kernels"]:
        found.append(("kernels, ms a step", _kernels(summary["kernels"], top)))
    if summary["device"]:
        found.append(("device", _device(summary["device"])))
    if summary["memory"]:
        found.append((f"memory of {summary['memory']['device']} at its peak", _memory(summary["memory"])))
    return found


def _phases(summary: Mapping[str, Any]) -> Table:
    table = plain_table(("phase", "ms", "share"), right=("ms", "share"))
    mean = summary["mean"]
    for phase in _PHASES:
        table.add_row(phase, _number(mean[f"{phase}_ms"]), f"{mean[f'{phase}_ms'] / mean['ms']:.0%}")
    table.add_row("step", _number(mean["ms"]), "")
    return table


def _ranks(rows: Sequence[Mapping[str, float]]) -> Table:
    columns = ("rank", "step", *_PHASES, "collectives")
    table = plain_table(columns, right=columns)
    for row in rows:
        cells = [row["ms"], *(row[f"{phase}_ms"] for phase in _PHASES), row["collectives_ms"]]
        table.add_row(str(round(row["rank"])), *map(_number, cells))
    return table


def _modules(summary: Mapping[str, Any], top: int) -> Table:
    """The modules with most time of their own, in the order of the forward."""
    device = "device_" if summary["device"] else ""
    keys = ["forward", "forward_self", "backward", "backward_self"]
    names = ["forward", "self", "backward", "self "]
    memory = any(row["retained_bytes"] is not None for row in summary["modules"])
    columns = ["module", "class", "calls", *names, *(["kept", "peak"] if memory else [])]
    table = plain_table(columns, right=columns[2:])

    def own(row: Mapping[str, Any]) -> float:
        return row[f"{device}forward_self_ms"] + row[f"{device}backward_self_ms"]

    shown = sorted(summary["modules"], key=own, reverse=True)[:top]
    for row in summary["modules"]:
        if any(row is one for one in shown):
            cells = [_number(row[f"{device}{key}_ms"]) for key in keys]
            cells += [_bytes(row["retained_bytes"]), _bytes(row["peak_bytes"])] if memory else []
            table.add_row(escape(row["name"] or "(model)"), escape(row["kind"]), f"{row['calls']:g}", *cells)
    outside = summary["unattributed"]
    if device:
        table.add_row("in no module", "", "", _number(outside["device_ms"]))
    else:
        table.add_row("in no module", "", "", _number(outside["forward_ms"]), "", _number(outside["backward_ms"]))
    return table


def _operators(summary: Mapping[str, Any], top: int) -> Table:
    columns = ["operator", "calls", "host self", *(["device"] if summary["device"] else [])]
    table = plain_table(columns, right=columns[1:])
    for row in summary["operators"][:top]:
        cells = [f"{row['calls']:g}", _number(row["host_self_ms"])]
        table.add_row(escape(row["name"]), *cells, *([_number(row["device_ms"])] if summary["device"] else []))
    return table


def _kernels(rows: Sequence[Mapping[str, Any]], top: int) -> Table:
    table = plain_table(("kernel", "operator", "calls", "ms", "tensor cores"), right=("calls", "ms"))
    for row in rows[:top]:
        cores = "yes" if row["tensor_cores"] else ""
        name = escape(_short(row["name"]))
        table.add_row(name, escape(row["operator"] or ""), f"{row['calls']:g}", _number(row["ms"]), cores)
    return table


def _device(device: Mapping[str, Any]) -> Table:
    table = plain_table(("what", "value"), right=("value",))
    table.add_row("name", escape(device["name"] or "unknown"))
    table.add_row("busy", f"{device['busy_share']:.0%}")
    table.add_row("in tensor cores, of computing", f"{device['tensor_core_share']:.0%}")
    table.add_row("copies, ms a step", _number(device["copies_ms"]))
    table.add_row("collectives, ms a step", _number(device["collectives_ms"]))
    for cause, words in _CAUSES.items():
        table.add_row(f"idle, {words}, ms a step", _number(device["idle"][f"{cause}_ms"]))
    for gap in device["idle"]["gaps"][:3]:
        where = "" if gap["module"] is None else f" in {gap['module'] or 'the model'}"
        table.add_row(escape(f"a gap in step {gap['step']} ({gap['cause']}){where}, ms"), _number(gap["ms"]))
    return table


def _memory(memory: Mapping[str, Any]) -> Table:
    table = plain_table(("category", "size", "share"), right=("size", "share"))
    for category, size in memory["categories"].items():
        share = f"{size / memory['peak_bytes']:.0%}" if memory["peak_bytes"] else ""
        table.add_row(category.replace("_", " "), _bytes(size), share)
    table.add_row(f"all, in step {memory['peak_step']}", _bytes(memory["peak_bytes"]), "")
    return table


def _print_files(out: Console, window: Path) -> None:
    out.print(f"\nfiles: {escape(str(window))}", soft_wrap=True)


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 100 else f"{milliseconds:.1f}"


def _bytes(size: float | None) -> str:
    """A number of bytes for people."""
    if size is None:
        return ""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _short(name: str) -> str:
    """A kernel's name without the words that all have, cut where it is long."""
    name = name.removeprefix("void ").replace("at::native::", "").replace("(anonymous namespace)::", "")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
