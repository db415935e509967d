"""docs/profile.md is true: its Python runs, its tables are those of the code, its keys are those of the file."""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from profiling.example import read_summary
from torch import nn

import gradlab
from gradlab.perf import metrics
from gradlab.perf.phases import PHASES
from gradlab.perf.telemetry import memory_scalars, read_nvml
from gradlab.profiling.options import Profile

PAGE = (Path(__file__).parents[2] / "docs" / "profile.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_its_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    loader = [(torch.randn(4, 8), torch.randint(0, 10, (4,))) for _ in range(8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(compile(block, "docs/profile.md", "exec"), {"F": F, "model": model, "loader": loader, "optimizer": optimizer})
    assert len(list(tmp_path.glob("runs/mlp/profile/*/summary.json"))) == 1


def sentences():
    """The sentence under each field of Profile."""
    source = textwrap.dedent(inspect.getsource(Profile))
    return dict(re.findall(r'^    (\w+): .*\n    """(.*)"""', source, re.MULTILINE))


def test_the_table_of_settings_is_made_from_the_sentences_under_them():
    said = sentences()
    rows = [f"| `{f.name}` | `{f.default}` | {said[f.name]} |" for f in dataclasses.fields(Profile)]
    inside = re.search(r"<!-- profile -->\n(.*?)<!-- /profile -->", PAGE, re.DOTALL).group(1).strip()
    table = "\n".join(["| setting of `Profile` | default | what it does |", "|---|---|---|", *rows])
    assert inside == table, f"it should read:\n{table}"


def documented_keys():
    table = PAGE[PAGE.index("### `summary.json`") : PAGE.index("### The trace")]
    return {
        key for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`([\w.]+)`", cell)
    }


def test_every_key_of_the_summary_is_described_and_none_other(run, tmp_path):
    with gradlab.profile(tmp_path, run.model, run.optimizer) as profiler:
        run.step()
    keys = set(read_summary(profiler.windows[0]))
    assert documented_keys() - {"device.idle"} == keys


def test_every_scalar_is_described(run, tmp_path):
    table = PAGE[PAGE.index("## Always on") : PAGE.index("## The files of a window")]
    described = set(re.findall(r"`(perf/\w+)`", table)) - {"perf/"}
    source = inspect.getsource(metrics) + inspect.getsource(memory_scalars) + inspect.getsource(read_nvml)
    written = set(re.findall(r'"(perf/\w+)"', source)) | {f"perf/{phase}_ms" for phase in PHASES}
    written |= {f"perf/memory_{name}_bytes" for name in ("allocated", "peak", "reserved")}
    assert described == written
