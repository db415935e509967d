"""What the PyTorch Profiler tab itself shows of a window: its own routes, asked in a process of their own."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from profiling.example import Run
from torch.utils.data import DataLoader

import gradlab
from gradlab.profiling.trace_file import tensorboard_dialect

READER = Path(__file__).with_name("read_tab.py")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Every view of one window of a small training run."""
    logdir = tmp_path_factory.mktemp("tab")
    run = Run()
    with gradlab.profile(logdir, run.model, wait=1, warmup=1, active=3, strict=True) as profiler:
        for batch in DataLoader(run.x.repeat(6, 1), batch_size=8):
            run.x = batch
            run.step()
            profiler.step()
    (logdir / "profile" / ".writing-left-by-a-crash").mkdir()
    return read(logdir)


def read(logdir):
    done = subprocess.run([sys.executable, READER, logdir], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not re.search("Failed|Traceback|Error in input data", done.stderr), done.stderr
    return json.loads(done.stdout)


def test_the_window_is_listed_with_its_views(shown):
    assert shown["runs"] == ["profile/step_000002"]
    assert shown["workers"] == ["rank0"]
    assert shown["views"] == ["Overview", "Operator", "Trace", "Memory", "Lightning"]


def test_the_overview_shows_the_recorded_steps_and_their_data_wait(shown):
    steps = shown["/overview"]["steps"]
    assert [row[0] for row in steps["rows"]] == ["2", "3", "4"]
    column = [column.get("name") for column in steps["columns"]].index("DataLoader")
    assert all(row[column] > 0 for row in steps["rows"])


def test_the_operator_table_has_rows(shown):
    rows = {row["name"]: row for row in shown["/operation/table"]["data"]}
    assert rows["aten::addmm"]["calls"] == 6 and rows["aten::addmm"]["host_self_duration"] > 0


def test_the_module_view_is_a_tree_of_qualified_names_with_times(shown):
    rows = {row["name"]: row for row in shown["/module"]["data"]}
    assert set(rows) == {"Sequential", "0", "1", "2"}
    assert all(row["host_duration"] > 0 and row["occurences"] == 3 for row in rows.values())


def test_the_memory_view_has_a_curve(shown):
    assert shown["/memory_curve"]["metadata"]["devices"] == ["CPU"]
    assert len(shown["/memory_curve"]["rows"]["CPU"]) > 10
    assert shown["/memory_events"]["rows"]["CPU"]


def test_the_trace_view_gets_the_whole_file(shown):
    assert {event["name"] for event in shown["/trace"]["traceEvents"]} >= {"ProfilerStep#2", "[pl][module]Linear: 0"}


@pytest.mark.slow
def test_a_cuda_trace_in_the_dialect_shows_device_time_and_counters(cuda_trace, tmp_path):
    window = tmp_path / "step_000004"
    window.mkdir()
    raw = tensorboard_dialect(cuda_trace("nccl_parser_config.json.gz"))
    (window / "rank0.1.pt.trace.json.gz").write_bytes(gzip.compress(raw, 1))
    shown = read(tmp_path)
    assert {"Overview", "Operator", "Kernel", "Trace"} <= set(shown["views"])
    rows = {row["name"]: row for row in shown["/operation/table"]["data"]}
    assert rows["aten::convolution_backward"]["device_self_duration"] > 0
    counters = {event["name"] for event in shown["/trace"]["traceEvents"] if event["ph"] == "C"}
    assert any("Utilization" in name for name in counters)
