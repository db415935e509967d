"""gradlab's own work in a window is measured, and blamed on nobody else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from profiling.example import Run, read_summary
from torch import nn

import gradlab
from gradlab import CallbackSink, Profile, Tap
from gradlab.hooks import own_ranges
from gradlab.profiling.analysis.attribution import attribute
from gradlab.profiling.analysis.events import OWN_WORK, Event, WindowEvents
from gradlab.profiling.analysis.summary import summarize
from gradlab.profiling.analysis.verdict import Shares, judge

US = 1000


def watched(tmp_path: Path, run: Run, **options: Any) -> dict[str, Any]:
    """The summary of a window of three steps in a watched loop."""
    profile = Profile(wait=3, warmup=1, active=3)
    with gradlab.watch(run.model, run.optimizer, logdir=tmp_path, profile=profile, strict=True, **options):
        for _ in range(9):
            run.step()
    (window,) = (tmp_path / "profile").glob("step_*")
    return read_summary(window)


def test_the_range_has_one_name() -> None:
    assert own_ranges.OWN_WORK == OWN_WORK


def test_without_hooks_there_is_no_own_work(run: Run, tmp_path: Path) -> None:
    with gradlab.profile(tmp_path, run.model, active=2, strict=True) as profiler:
        for _ in range(2):
            run.step()
            profiler.step()
    summary = read_summary(profiler.windows[0])
    assert (summary["gradlab_ms"], summary["verdict"]["shares"]["gradlab"]) == (0.0, 0.0)
    assert "gradlab" not in summary["verdict"]["sentence"]


def test_taps_of_everything_on_a_small_net_are_seen_and_left_out(run: Run, tmp_path: Path) -> None:
    taps = [Tap("*", of=["output", "output_grad", "weight", "weight_grad", "update"], stats=["norm", "hist"])]
    summary = watched(tmp_path, run, taps=taps)
    mean, shares = summary["mean"], summary["verdict"]["shares"]
    assert own_ranges.make is None
    assert 0.2 < shares["gradlab"] < 1 and summary["gradlab_ms"] == pytest.approx(shares["gradlab"] * mean["ms"])
    assert "gradlab's own work, " in summary["verdict"]["sentence"] and 0 <= shares["overhead"] <= 1
    phases = sum(value for key, value in mean.items() if key != "ms")
    assert phases == pytest.approx(mean["ms"]) and mean["other_ms"] >= summary["gradlab_ms"]
    in_modules = sum(row["forward_self_ms"] for row in summary["modules"]) + summary["unattributed"]["forward_ms"]
    assert in_modules == pytest.approx(mean["forward_ms"])
    if shares["gradlab"] >= 0.3:
        assert summary["verdict"]["attempts"][0].startswith("watch less")
    assert not any("torch.compile" in one or "bf16" in one for one in summary["verdict"]["attempts"])


def test_a_slow_sink_is_gradlabs_time_and_not_the_steps(run: Run, tmp_path: Path) -> None:
    sink = CallbackSink(lambda values, step: time.sleep(0.02), prompt=True)
    summary = watched(tmp_path, run, sinks=sink)
    assert summary["gradlab_ms"] > 15 and summary["verdict"]["shares"]["gradlab"] > 0.5
    assert summary["verdict"]["attempts"][0].startswith("watch less")


def test_training_is_the_same_in_a_window_and_outside(tmp_path: Path) -> None:
    plain, profiled = Run(), Run()
    for _ in range(9):
        plain.step()
    watched(tmp_path, profiled, taps=[Tap("*", of=["output", "weight_grad"], stats=["norm", "hist"])])
    assert plain.losses == profiled.losses


# On timelines made by hand.


def host(name: str, start: int, end: int, **others: Any) -> Event:
    return Event(name, start * US, end * US, 1, False, **others)


def kernel(start: int, end: int, launched_by: int) -> Event:
    return Event("some_kernel", start * US, end * US, 7, True, correlation=100 + launched_by, launched_by=launched_by)


STEP = host("ProfilerStep#1", 0, 1000)
OWN = host(OWN_WORK, 100, 500)


def test_operators_inside_are_nobodys_and_nested_ranges_count_once() -> None:
    events = [STEP, OWN, host(OWN_WORK, 200, 300), host("aten::mm", 210, 290), host("aten::add", 600, 900)]
    times = attribute(events, [1], {})
    assert times.own == 400 * US and times.own_spans == [(100 * US, 500 * US)]
    assert list(times.operators) == ["aten::add"] and times.outside_operators == 300 * US
    assert sum(times.host.values()) == 1000 * US
    summary = summarize(WindowEvents(events=events, steps=[1], modules={}))
    assert summary["verdict"]["shares"]["overhead"] == pytest.approx(0.5)  # 300 of 600: the rest is in aten::add


def test_own_kernels_and_the_wait_for_own_hooks_are_left_out_of_the_devices_time() -> None:
    launches = [
        host("aten::mm", 10, 20, correlation=1),
        OWN,
        host("aten::hist", 110, 120, correlation=2),
        host("aten::mm", 520, 530, correlation=3),
    ]
    events = [STEP, *launches, kernel(20, 100, 1), kernel(120, 220, 2), kernel(530, 1000, 3)]
    times = attribute(events, [1], {})
    assert times.device_busy == 650 * US and times.own_device == 100 * US
    assert times.own_idle == 300 * US  # 100 to 120 and 220 to 500
    assert list(times.operators) == ["aten::mm"] and times.kernels["some_kernel"].calls == 2
    summary = summarize(WindowEvents(events=events, steps=[1], modules={}))
    shares = summary["verdict"]["shares"]
    assert shares["device_busy"] == pytest.approx(550 / 600) and summary["verdict"]["bound"] != "host"


# Advice.


def attempts(num_parameters: int | None = 10**8, **shares: Any) -> tuple[str, ...]:
    given = {"data": 0.0, "overhead": 0.1, "device_busy": None, **shares}
    return judge(Shares(**given), step_ms=1.0, largest=("x", 0.5), num_parameters=num_parameters).attempts


def has(what: str, found: tuple[str, ...]) -> bool:
    return any(what in one for one in found)


def test_a_narrower_type_is_for_devices() -> None:
    assert has("bf16", attempts(device_busy=0.95)) and has("bf16", attempts(device_busy=0.95, dense=0.1))
    assert not has("bf16", attempts()) and not has("bf16", attempts(dense=0.1))
    assert has("threads", attempts()) and not has("threads", attempts(device_busy=0.95))
    assert has("pin_memory", attempts(data=0.5, device_busy=0.1)) and not has("pin_memory", attempts(data=0.5))


def test_a_small_net_on_a_cpu_is_not_compiled() -> None:
    assert has("torch.compile", attempts(overhead=0.9)) and has("torch.compile", attempts(None, overhead=0.9))
    assert not has("torch.compile", attempts(2_500, overhead=0.9))
    assert has("torch.compile", attempts(2_500, device_busy=0.3))


def test_where_gradlab_takes_much_of_the_step_that_comes_first() -> None:
    found = attempts(overhead=0.9, gradlab=0.5)
    assert found[0].startswith("watch less") and not has("torch.compile", found)
    verdict = judge(Shares(data=0.0, overhead=0.9, device_busy=None, gradlab=0.5), step_ms=1.0, largest=("x", 0.5))
    assert verdict.sentence.endswith("less than 5 us; gradlab's own work, 50% of the recorded step, is left out.")
    assert not has("watch less", attempts(overhead=0.9, gradlab=0.1))


def test_the_size_of_the_model_reaches_the_verdict(tmp_path: Path) -> None:
    x = torch.ones(2)
    small, large = nn.Linear(2, 2), nn.Linear(200, 200)
    for name, model in (("small", small), ("large", large)):
        with gradlab.profile(tmp_path / name, model, active=1, strict=True) as profiler:
            for _ in range(1000):
                x.add_(1.0)
            profiler.step()
        tries = read_summary(profiler.windows[0])["verdict"]["attempts"]
        assert has("torch.compile", tuple(tries)) is (model is large)
