"""Healthy training scripts that look faulty to naive rules: gradlab gives no warning on any of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradlab.runs.find import all_runs

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks" / "diagnosis" / "healthy").glob("*.py"))


def test_there_are_scripts():
    assert SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_healthy_script_gets_no_warning(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradlab", "attach", str(script), "--seed", "3"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (run,) = all_runs(tmp_path / "runs")
    summaries = [json.loads(path.read_text()) for path in run.path.glob("**/summary.json")]
    assert "final loss" in ended.stdout or "final return" in ended.stdout
    assert summaries
    assert [one for summary in summaries for one in summary["findings"] if one["severity"] != "info"] == []
