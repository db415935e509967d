"""The page on Jacobians: its Python runs, its experiment settings load, its engines and options are those there are."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_readme import Net

import gradlab
from gradlab.config.load import load
from gradlab.jacobians.engines.fallback import NAMES

PAGE = (Path(__file__).parent.parent / "docs" / "jacobians.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_python_runs(block: str) -> None:
    model = Net()
    names = {
        "F": F,
        "model": model,
        "x": torch.randn(4, 8),
        "target": torch.randint(0, 10, (4,)),
        "loader": [(torch.randn(4, 8), torch.randint(0, 10, (4,))) for _ in range(3)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(compile(block, "jacobians.md", "exec"), names)
    if "block" in names:
        assert names["block"].values.shape == (3, 8)


def test_the_settings_load(tmp_path: Path) -> None:
    (settings,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "e.yaml"
    path.write_text("name: e\nmodel: mlp\ndata: digits\n" + settings)
    experiment = load(path).experiment
    assert experiment.jacobians[1].probe == "validation"
    assert experiment.depth_growth[0].at == "layers.?"
    assert experiment.sharpness[0].every == 100


def test_every_engine_is_described() -> None:
    described = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.M))))
    assert set(NAMES) <= described


def test_every_argument_that_is_described_exists() -> None:
    table = PAGE[PAGE.index("| argument |") : PAGE.index("From the command line")]
    words = set(re.findall(r"(\w+)(?==|`)", " ".join(re.findall(r"^\| (.*?) \|", table, re.M)[1:])))
    arguments = set(inspect.signature(gradlab.jacobian).parameters)
    fields = {f.name for f in dataclasses.fields(gradlab.JacobianSlice)}
    named = {word for word in words if word in arguments | fields}
    assert {"rows", "cols", "groups", "weights", "samples", "reduce", "of_map", "mode", "block", "top"} <= named
