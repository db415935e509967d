"""docs/scale.md says what benchmarks/scale.py has measured."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text()
ROWS = json.loads(max((ROOT / "benchmarks" / "results").glob("scale-*.json")).read_text())["rows"]


def test_the_table_is_the_newest_result() -> None:
    lines = ["| " + " | ".join(map(str, row.values())) + " |" for row in ROWS]
    head = ["| " + " | ".join(ROWS[0]) + " |", "|" + "---|" * len(ROWS[0])]
    assert "\n".join(["<!-- measured -->", *head, *lines, "<!-- /measured -->"]) in PAGE


def test_one_collective_of_the_predicted_size_a_logged_step() -> None:
    for row in ROWS:
        alone = row["case"].endswith("ranks: 1")
        assert row["collectives added"] == (0 if alone else 1)
        assert row["bytes reduced"] == row["by the model"]
