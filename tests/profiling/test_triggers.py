"""Windows that something other than the schedule opens, and the limits to them: a slow step, a wait, a finding."""

import pytest
from profiling.example import read_summary, recorded_steps

import gradlab
from gradlab.finding import Finding
from gradlab.profiling import profiler as profiler_module
from gradlab.profiling.options import Profile, Trigger
from gradlab.profiling.profiler import Profiler
from gradlab.profiling.triggers import Limits, StepTimeTriggers
from gradlab.profiling.window import Reason
from gradlab.sinks import MemorySink

WATCHFUL = {"repeat": 0, "warmup": 1, "active": 2, "max_share": 1.0}


class Time:
    """A clock of seconds that moves when it is told, for step times."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(profiler_module, "perf_counter", clock)
    return clock


def train(profiler, run, clock, seconds, *, waits=()):
    """Steps of these durations; `waits` is how much of each was waiting for data."""
    for number, duration in enumerate(seconds):
        waited = waits[number] if waits else 0.0
        clock.now += waited
        profiler.data_ready()
        run.step()
        clock.now += duration - waited
        profiler.step()


def test_a_slow_step_opens_a_window_on_the_steps_after_it(run, tmp_path, clock):
    profiler = Profiler(Profile(trigger=Trigger(slow_step=3), **WATCHFUL), tmp_path, run.model, strict=True)
    profiler.begin(0)
    train(profiler, run, clock, [0.01] * 20 + [0.05] + [0.01] * 10)
    profiler.close()
    (found,) = profiler.windows
    assert recorded_steps(found) == [22, 23]
    assert read_summary(found)["reason"] == {
        "kind": "slow_step",
        "detail": "step 20 took 50 ms, 5 times the median",
    }


def test_waiting_for_data_opens_a_window(run, tmp_path, clock):
    profiler = Profiler(Profile(trigger=Trigger(data_wait=0.3), **WATCHFUL), tmp_path, run.model, strict=True)
    profiler.begin(0)
    train(profiler, run, clock, [0.01] * 50, waits=[0.0] * 25 + [0.009] * 25)
    profiler.close()
    assert [read_summary(path)["reason"]["kind"] for path in profiler.windows] == ["data_wait"]


def test_a_finding_opens_a_window_where_it_is_asked_for(run, tmp_path):
    finding = Finding(first_step=3, name="nonfinite", sites=("0",), message="the output of 0 has 3 non-finite values.")
    for on_finding, windows in ((True, 1), (False, 0)):
        options = Profile(trigger=Trigger(on_finding=on_finding), **WATCHFUL)
        profiler = Profiler(options, tmp_path / str(on_finding), run.model, strict=True)
        run.train(profiler, 3)
        profiler.finding_reported(Finding(first_step=3, name="profile", message="host-bound", severity="info"))
        profiler.finding_reported(finding)
        run.train(profiler, 5)
        profiler.close()
        assert len(profiler.windows) == windows
        for path in profiler.windows:
            assert read_summary(path)["reason"] == {"kind": "finding", "detail": finding.message}


def test_a_monitor_passes_its_findings_on_and_gets_the_verdict_as_one(run, tmp_path):
    sink = MemorySink()
    options = Profile(trigger=Trigger(on_finding=True), **WATCHFUL)
    monitor = gradlab.watch(run.model, run.optimizer, sinks=[sink], logdir=tmp_path, profile=options, strict=True)
    run.step()
    monitor.report(Finding(first_step=0, name="mine", message="look here"))
    for _ in range(5):
        run.step()
    monitor.close()
    assert [finding.kind for finding in sink.findings] == ["mine", "profile"]
    assert recorded_steps(tmp_path / "profile" / "step_000003") == [3, 4]


def test_every_opens_windows_until_a_limit_is_reached(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="gradlab")
    options = Profile(wait=1, warmup=0, active=1, every=5, max_windows=2, max_share=1.0)
    profiler = Profiler(options, tmp_path, run.model, strict=True)
    run.train(profiler, 20)
    profiler.close()
    assert [recorded_steps(path) for path in profiler.windows] == [[1], [6]]
    assert caplog.messages == ["a profile window (schedule) was left out: there have been 2 windows (max_windows=2)"]


def test_the_first_window_by_every_is_early_however_dear(run, tmp_path):
    options = Profile(wait=1, warmup=0, active=2, every=5, max_share=0.001)
    profiler = Profiler(options, tmp_path, run.model, strict=True)
    run.train(profiler, 20)
    profiler.close()
    assert [recorded_steps(path) for path in profiler.windows] == [[1, 2]]


def reasons(trigger, steps):
    triggers = StepTimeTriggers(trigger)
    found = {number: triggers.reason_of(number, *step) for number, step in enumerate(steps)}
    return {number: reason for number, reason in found.items() if reason is not None}


def test_a_slow_step_is_seen_against_the_median_of_those_before():
    steps = [(0.010, 0.0)] * 15 + [(0.035, 0.0)] + [(0.010, 0.0)] * 5 + [(0.029, 0.0)]
    found = reasons(Trigger(slow_step=3), steps)
    assert found == {15: Reason("slow_step", "step 15 took 35 ms, 3.5 times the median")}


def test_a_slow_step_among_the_first_is_no_reason():
    assert reasons(Trigger(slow_step=3), [(1.0, 0.0)] + [(0.01, 0.0)] * 40) == {}


def test_the_median_follows_a_run_that_becomes_slower_for_good():
    steps = [(0.01, 0.0)] * 60 + [(0.025, 0.0)] * 60 + [(0.06, 0.0)]
    assert reasons(Trigger(slow_step=3), steps) == {}


def test_one_slow_stretch_is_one_reason():
    assert list(reasons(Trigger(slow_step=3), [(0.01, 0.0)] * 20 + [(0.05, 0.0)] * 9)) == [20]


def test_waiting_for_data_is_seen_over_twenty_steps():
    found = reasons(Trigger(data_wait=0.25), [(0.01, 0.001)] * 30 + [(0.02, 0.01)] * 20)
    (number,) = found
    assert 30 < number < 50
    assert found[number].kind == "data_wait" and "of the 20 steps" in found[number].detail


def test_the_limits_count_windows_but_not_those_asked_for_by_hand():
    limits = Limits(Profile(max_windows=2))
    limits.run_began()
    for kind in ("schedule", "demand", "finding"):
        limits.window_opened(Reason(kind))
        limits.window_closed()
    limits.seconds = 0.0
    assert limits.refusal(Reason("schedule")) == "there have been 2 windows (max_windows=2)"
    assert limits.refusal(Reason("demand")) == ""


def test_the_windows_end_with_the_disk_that_they_may_use():
    limits = Limits(Profile(max_megabytes=1))
    limits.run_began()
    limits.num_bytes = 1_200_000
    assert limits.refusal(Reason("demand")) == "the windows' files take 1 MB (max_megabytes=1)"


def test_the_share_of_time_limits_what_repeats_without_end():
    limits = Limits(Profile(every=100))
    limits.run_began()
    limits.seconds = 1000.0
    assert "of the run's time (max_share=0.05)" in limits.refusal(Reason("schedule"))
    assert "of the run's time" in limits.refusal(Reason("slow_step"))
    assert limits.refusal(Reason("demand")) == ""
    numbered = Limits(Profile(repeat=3))
    numbered.run_began()
    numbered.seconds = 1000.0
    assert numbered.refusal(Reason("schedule")) == ""
