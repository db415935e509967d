"""What docs/board.md shows can be made: its example runs, and its pictures are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gradlab.board.file_source import FileSource
from gradlab.board.metrics import metrics_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_logs_what_the_picture_shows(tmp_path):
    command = [sys.executable, str(DOCS / "lr_range_test.py"), str(tmp_path / "run"), "12"]
    subprocess.run(command, check=True, capture_output=True)
    source = FileSource(tmp_path / "run", "run")
    metrics, notes = metrics_of(source.list("gradlab")["run"])
    assert notes == []
    assert {"weight_grad.norm", "weight_grad.hist", "update_ratio", "output.zeros"} <= set(metrics)
    assert source.read_scalar("run", "train/loss").steps.tolist() == list(range(12))


def test_pictures_are_there_and_small():
    for page in (DOCS / "board.md", DOCS.parent / "README.md"):
        for name in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text()):
            picture = page.parent / name
            assert picture.stat().st_size < 300_000, name
