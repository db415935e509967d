"""`gradlab rules`: what gradlab looks for, as a table, and all that there is to say of one rule."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gradlab.errors import UsageError

if TYPE_CHECKING:
    from gradlab.diagnose.manual import Entry


@click.command("rules")
@click.argument("rule", required=False)
@click.option("--json", "as_json", is_flag=True, help="A JSON list, or an object where a rule is given.")
def rules_command(rule: str | None, as_json: bool) -> None:
    """List what gradlab looks for in a training.

    With RULE, a code (GL301) or a name (step-too-large): what it sees, why that hurts, what to do, what looks like it
    and is healthy, how to silence it, and its limits.
    """
    from gradlab.diagnose.manual import entries

    if rule is not None:
        chosen = _chosen(rule)
        if as_json:
            click.echo(json.dumps(_record(chosen), indent=2, ensure_ascii=False))
        else:
            click.echo(_text(chosen))
    elif as_json:
        click.echo(json.dumps([_record(one) for one in entries()], indent=2, ensure_ascii=False))
    else:
        _print(entries())


def _chosen(rule: str) -> Entry:
    from gradlab.diagnose.catalogue import all_rules, matching
    from gradlab.diagnose.manual import entries

    known = {one.code: one for one in entries()}
    name = rule.upper() if rule.upper() in known else rule
    codes = sorted(matching([name], all_rules()))
    if name in known or len(codes) == 1:
        return known[name if name in known else codes[0]]
    raise UsageError(f"{rule!r} is the beginning of {len(codes)} codes: {', '.join(codes)}.")


def _record(entry: Entry) -> dict[str, object]:
    return {**asdict(entry), "summary": entry.first_line}


def _text(entry: Entry) -> str:
    """A rule as plain text: Markdown without its stars."""
    head = f"{entry.code} {entry.name} ({entry.severity}, {entry.certainty})"
    limits = [f"  {one.usual:g}{f'  {one.about}' if one.about else ''}" for one in entry.limits]
    parts = [head, entry.about.replace("**", ""), *(["Limits.\n" + "\n".join(limits)] if limits else [])]
    return "\n\n".join(parts)


def _print(rows: list[Entry]) -> None:
    from rich.markup import escape

    from gradlab.summary.terminal import console, plain_table

    table = plain_table(("code", "name", "certainty", "severity", "what it sees"))
    table.columns[-1].no_wrap = False
    for one in rows:
        table.add_row(one.code, one.name, one.certainty, one.severity, escape(one.first_line))
    console().print(table)
    click.echo("gradlab rules CODE tells all about one.")
