"""The experiments on Jacobians show what their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradlab
from gradlab.events.reader import event_files, read_events
from gradlab.runs.find import all_runs

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

pytestmark = pytest.mark.slow


def series(name: str, folder: Path, *overrides: str) -> dict[str, list[float]]:
    """Run an experiment; its Jacobian scalars and validation metrics by tag, oldest first."""
    command = [sys.executable, "-W", "ignore", "-m", "gradlab", "run", str(EXPERIMENTS / f"{name}.yaml"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(Path(gradlab.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    run = next(run for run in all_runs(folder / "runs") if run.name == name.replace("_", "-"))
    found: dict[str, list[float]] = {}
    for file in event_files(run.events):
        for event in read_events(file):
            if event.plugin_name == "scalars" and event.tag.startswith(("jacobian/", "val/")):
                assert isinstance(event.value, float)
                found.setdefault(event.tag, []).append(event.value)
    return found


def test_depth_growth_separates_orthogonal_from_gaussian_weights(tmp_path: Path) -> None:
    good = series("depth_orthogonal", tmp_path)
    bad = series("depth_gaussian", tmp_path)
    growth = "jacobian/features__growth__input/"
    assert bad[growth + "log_cond"][0] > 5 * good[growth + "log_cond"][0]
    assert bad[growth + "spread"][0] > 3 * good[growth + "spread"][0]
    assert max(good[growth + "audit_error"] + bad[growth + "audit_error"]) < 1e-3
    assert good["val/accuracy"][-1] > bad["val/accuracy"][-1] + 0.05


def test_the_jacobian_of_validation_samples_stays_up_where_that_of_training_samples_falls(tmp_path: Path) -> None:
    found = series("jacobian_norm", tmp_path)
    train, validation = (found[f"jacobian/softmax(output)__wrt__input{at}/fro"] for at in ("", "@validation"))
    assert train[-1] < 0.5 * max(train)
    assert validation[-1] > 1.5 * train[-1]
