"""The pages of `docs/rules`, one a code, out of what rules say of themselves: `python -m gradlab.cli.rules_pages`.

Only gradlab's own rules have pages: those of installed packages are documented there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gradlab.diagnose.manual import Entry, entries

FOLDER = Path(__file__).parents[2] / "docs" / "rules"
_MADE_BY = "<!-- Made from the rules' docstrings by `python -m gradlab.cli.rules_pages`. -->"
_INDEX = """# What gradlab looks for

Each rule has a code that stays the same. How sure it is: **exact** rules read off a fact (a graph, a setting, a number
that is not finite); **scale-free** ones compare numbers without a unit, with limits between measured healthy and faulty
ranges; those with **own history** compare a training with what it was before. [Diagnosis](../diagnosis.md) says how
findings are read, how they are silenced, and how to write a rule of one's own.
"""
_FAMILIES = {
    "GL1": "Gradients and parameters",
    "GL2": "The loss and modes",
    "GL3": "The optimizer",
    "GL4": "The signal and what weights start from",
    "GL5": "Learning",
    "GL6": "Data and generalization",
    "GL7": "Numbers",
    "GL8": "Speed and memory",
    "GL9": "Ranks",
}


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    own = [one for one in entries() if one.code.startswith("GL")]
    return {"README.md": _index(own), **{f"{one.code}.md": _page(one) for one in own}}


def write(folder: Path = FOLDER) -> None:
    """Write all pages, and remove those of codes that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def _page(entry: Entry) -> str:
    head = f"# {entry.code}: {entry.name}\n\n`{entry.severity}` · {entry.certainty} · [all rules](README.md)"
    limits = [f"| {one.usual:g} | {one.about.replace('|', '/')} |" for one in entry.limits]
    table = ["\n".join(["| limit | what is compared |", "|---|---|", *limits])] if limits else []
    return "\n\n".join([_MADE_BY, head, entry.about, *table]) + "\n"


def _index(rows: Sequence[Entry]) -> str:
    parts = [_MADE_BY, _INDEX.strip()]
    for family, title in _FAMILIES.items():
        lines = [
            f"| [{one.code}]({one.code}.md) | {one.name} | {one.certainty} | {one.severity} | {one.first_line} |"
            for one in rows
            if one.code.startswith(family)
        ]
        if lines:
            head = "| code | name | certainty | severity | what it sees |\n|---|---|---|---|---|"
            parts += [f"## {title}", "\n".join([head, *lines])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
