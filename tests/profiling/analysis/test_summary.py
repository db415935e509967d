import json
import time

import pytest
import torch
from profiling.example import Run, read_summary
from torch import nn
from torch.utils.data import DataLoader, Dataset

import gradlab


class SlowDigits(Dataset):
    """Eight samples that take a hundred milliseconds to come: far longer than a step, also on a busy machine."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(0.1)
        return torch.randn(16)


def summary_of(logdir, model, step, *, num_steps=3, **options):
    with gradlab.profile(logdir, model, wait=2, active=num_steps, strict=True, **options) as profiler:
        for _ in range(num_steps + 2):
            step()
            profiler.step()
    return read_summary(profiler.windows[0])


def test_the_summary_is_plain_json_with_a_schema(run, tmp_path):
    summary = summary_of(tmp_path, run.model, run.step)
    assert summary["schema"] == 2 and summary["torch"] == torch.__version__ and summary["rank"] == 0
    assert [row["step"] for row in summary["steps"]] == [2, 3, 4]
    assert summary["device"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_operators_are_listed_by_cost(run, tmp_path):
    operators = summary_of(tmp_path, run.model, run.step)["operators"]
    costs = [row["host_self_ms"] for row in operators]
    assert costs == sorted(costs, reverse=True)
    calls = {row["name"]: row["calls"] for row in operators}
    assert calls["aten::addmm"] == 2
    assert all("::" in name and not name.startswith("autograd::") for name in calls)


def test_memory_by_module_is_what_its_output_takes(tmp_path):
    run = Run(nn.Sequential(nn.Linear(16, 256), nn.Sequential(nn.ReLU(), nn.Linear(256, 4))))
    rows = {row["name"]: row for row in summary_of(tmp_path, run.model, run.step)["modules"]}
    floats = {"0": 8 * 256, "1.0": 8 * 256, "1.1": 8 * 4, "1": 8 * 256 + 8 * 4}
    for name, count in floats.items():
        assert rows[name]["retained_bytes"] == 4 * count
        assert rows[name]["peak_bytes"] >= 4 * count
    assert rows[""]["peak_bytes"] >= 4 * (floats["0"] + floats["1"])


def test_memory_that_was_not_recorded_is_null(run, tmp_path):
    rows = summary_of(tmp_path, run.model, run.step, memory=False)["modules"]
    assert [row["retained_bytes"] for row in rows] == [None] * len(rows)


def test_a_slow_loader_gives_the_verdict_input_bound(run, tmp_path):
    loader = iter(DataLoader(SlowDigits(), batch_size=1))

    def step():
        run.x = next(loader).expand(8, -1)
        run.step()

    summary = summary_of(tmp_path, run.model, step)
    assert summary["mean"]["data_ms"] >= 100
    assert summary["verdict"]["bound"] == "input"
    assert summary["verdict"]["sentence"].endswith("waits for the next batch.")
    assert "num_workers" in summary["verdict"]["attempts"][0]


def test_a_slow_iterator_that_is_no_loader_is_input_bound_when_the_loop_says_when_data_is_ready(run, tmp_path):
    with gradlab.profile(tmp_path, run.model, wait=1, active=2, strict=True) as profiler:
        for _ in range(3):
            time.sleep(0.1)
            profiler.data_ready()
            run.step()
            profiler.step()
    summary = read_summary(profiler.windows[0])
    assert summary["mean"]["data_ms"] >= 100 and summary["verdict"]["bound"] == "input"


def test_many_tiny_operators_give_the_verdict_host_bound(tmp_path):
    x = torch.ones(2)

    def step():
        for _ in range(2000):
            x.add_(1.0)

    verdict = summary_of(tmp_path, None, step)["verdict"]
    assert verdict["bound"] == "host" and verdict["shares"]["overhead"] > 0.5


def test_large_products_give_the_verdict_compute_bound_and_name_the_module(tmp_path):
    run = Run(nn.Sequential(nn.Linear(16, 768), nn.Linear(768, 768), nn.Linear(768, 4)))
    run.x, run.y = run.x.repeat(32, 1), run.y.repeat(32)
    verdict = summary_of(tmp_path, run.model, run.step)["verdict"]
    assert verdict["bound"] == "compute"
    assert verdict["sentence"].endswith("of it in 1.")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_window_has_device_time_by_module(tmp_path):
    run = Run(nn.Sequential(nn.Linear(16, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 4)).cuda())
    run.x, run.y = run.x.cuda(), run.y.cuda()
    summary = summary_of(tmp_path, run.model, run.step)
    rows = {row["name"]: row for row in summary["modules"]}
    device = sum(row["device_forward_self_ms"] + row["device_backward_self_ms"] for row in rows.values())
    assert 0 < summary["device"]["busy_share"] <= 1
    assert device + summary["unattributed"]["device_ms"] == pytest.approx(summary["device"]["ms"])
    assert rows["1"]["device_backward_ms"] > rows["2"]["device_backward_ms"] > 0
