"""Profiles and `perf/*` on a real CUDA device; elsewhere devices are stored traces and stand-ins."""

import json

import pytest
import torch
from profiling.example import Run
from torch import nn

import gradlab
from gradlab.perf.devices import peak_of
from gradlab.sinks import MemorySink

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def wide_run():
    run = Run(nn.Sequential(nn.Linear(16, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 4)).cuda())
    run.x, run.y = run.x.cuda(), run.y.cuda()
    return run


def steps(run, number):
    for _ in range(number):
        run.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run.model(run.x), run.y).backward()
        run.optimizer.step()


def test_the_always_on_layer_waits_for_nothing_and_knows_the_devices_own_times():
    run, sink = wide_run(), MemorySink()
    monitor = gradlab.watch(run.model, run.optimizer, taps=[], sinks=[sink], strict=True)
    steps(run, 8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(run, 40)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    steps(run, 1)
    monitor.close()
    values = {tag: value for _, scalars in sink.logged for tag, value in scalars.items()}
    assert values["perf/forward_ms"] > 0 and values["perf/backward_ms"] > values["perf/forward_ms"]
    assert values["perf/memory_peak_bytes"] >= values["perf/memory_allocated_bytes"] > 4 * 4096 * 4096
    assert ("perf/mfu" in values) == (peak_of(torch.cuda.get_device_name()) is not None)


def test_a_window_has_kernels_idle_causes_and_memory_of_the_device(tmp_path):
    run = wide_run()
    with gradlab.profile(tmp_path, run.model, run.optimizer, wait=2, warmup=1, active=2, strict=True) as profiler:
        for _ in range(5):
            run.step()  # with .item() in it
            profiler.step()
    summary = json.loads((profiler.windows[0] / "summary.json").read_text())
    assert summary["kernels"] and summary["notes"] == []
    idle = summary["device"]["idle"]
    spent = summary["device"]["busy_share"] * summary["mean"]["ms"]
    assert spent + sum(idle[f"{cause}_ms"] for cause in ("data", "sync", "host", "queue")) == pytest.approx(
        summary["mean"]["ms"], rel=0.05
    )
    assert idle["sync_ms"] > 0
    assert summary["memory"]["device"] == "cuda:0"
    assert summary["memory"]["categories"]["parameters"] > 4 * 4096 * 4096


def test_running_out_of_memory_leaves_a_snapshot(tmp_path):
    run = wide_run()
    run.model[1].register_forward_pre_hook(lambda *_: torch.empty(2**50, device="cuda", dtype=torch.uint8))
    with pytest.raises(torch.OutOfMemoryError) as caught, gradlab.profile(tmp_path, run.model, run.optimizer):
        run.step()
    assert "the forward of 1 (Linear) asked for" in caught.value.__notes__[0]
    assert (tmp_path / "oom_000000" / "snapshot.pickle").stat().st_size > 0
