"""The examples in docs/examples run as they are, each in a process of its own, and leave one event file."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradlab.events.reader import read_events

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
NEEDS = {"with_huggingface": "transformers", "with_accelerate": "accelerate"}
PAGE = (ROOT / "docs" / "integrations.md").read_text()


def marked(path: Path) -> object:
    """An example, with the marks of what it needs."""
    return pytest.param(path, marks=pytest.mark.integrations if path.stem in NEEDS else pytest.mark.slow, id=path.stem)


def test_the_page_shows_each_example_as_it_is() -> None:
    for path in EXAMPLES:
        assert path.read_text().rstrip() in PAGE, f"docs/integrations.md does not show {path.name} as it is"


@pytest.mark.parametrize("path", [marked(path) for path in EXAMPLES])
def test_an_example_runs_and_logs_every_step(path: Path, tmp_path: Path) -> None:
    package = NEEDS.get(path.stem)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; `pip install gradlab[integrations]` has it")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "GradlabWarning" not in done.stderr
    (file,) = (tmp_path / "runs").rglob("events.out.*gradlab")
    values = [value for value in read_events(file) if value.tag.startswith("gradlab/weight_grad.norm/")]
    count = int(done.stdout.splitlines()[-1].split()[0])
    assert [value.step for value in values if value.plugin_name == "gradlab"] == list(range(count))
    assert count >= 4
