"""Windows that something other than the schedule opens: a slow step, a wait, a finding, somebody at a keyboard."""

import json
import threading
import time

import pytest
from profiling.example import Run, read_summary, recorded_steps

import gradlab
from gradlab.frame import Finding
from gradlab.profiling import profiler as profiler_module
from gradlab.profiling import requests
from gradlab.profiling.options import ON_DEMAND, Profile, Trigger
from gradlab.profiling.profiler import Profiler
from gradlab.profiling.requests import (
    RequestPoller,
    read_answer,
    read_request,
    request_from_ranks,
    request_window,
)
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
    finding = Finding(step=3, kind="nonfinite", site="0", message="the output of 0 has 3 non-finite values.")
    for on_finding, windows in ((True, 1), (False, 0)):
        options = Profile(trigger=Trigger(on_finding=on_finding), **WATCHFUL)
        profiler = Profiler(options, tmp_path / str(on_finding), run.model, strict=True)
        run.train(profiler, 3)
        profiler.finding_reported(Finding(step=3, kind="profile", site="", message="host-bound", severity="info"))
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
    monitor.report(Finding(step=0, kind="mine", site="", message="look here"))
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


# On demand.


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(requests, "_POLL_SECONDS", 0.0)


def test_a_request_is_answered_with_a_window_and_taken_away(run, tmp_path, impatient):
    profiler = Profiler(ON_DEMAND, tmp_path, run.model, strict=True)
    run.train(profiler, 3)
    request = request_window(tmp_path, active=2)
    assert read_answer(tmp_path, request) is None
    run.train(profiler, 8)
    profiler.close()
    answer = read_answer(tmp_path, request)
    assert answer == {"id": request, "window": profiler.windows[0].name}
    assert len(profiler.windows) == 1 and len(recorded_steps(profiler.windows[0])) == 2
    assert read_request(tmp_path) is None
    assert read_summary(profiler.windows[0])["reason"]["kind"] == "demand"


def test_a_request_during_a_window_waits_for_its_end(run, tmp_path, impatient):
    profiler = Profiler(Profile(wait=1, warmup=0, active=3), tmp_path, run.model, strict=True)
    profiler.begin(0)
    for number in range(12):
        if number == 2:
            request = request_window(tmp_path, active=1)
        run.step()
        profiler.step(number)
    profiler.close()
    assert [read_summary(path)["reason"]["kind"] for path in profiler.windows] == ["schedule", "demand"]
    assert read_answer(tmp_path, request)["window"] == profiler.windows[1].name


def test_a_request_that_cannot_be_met_is_answered_with_a_sentence(run, tmp_path, impatient):
    profiler = Profiler(Profile(repeat=0, max_megabytes=1), tmp_path, run.model, strict=True)
    profiler.scheduler.limits.num_bytes = 2_000_000
    request = request_window(tmp_path, active=2)
    run.train(profiler, 3)
    assert read_answer(tmp_path, request)["error"] == "no window: the windows' files take 2 MB (max_megabytes=1)."
    profiler.close()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"id": "a"}', '{"id": "a", "active": "many"}', '{"id": 1, "x": 2}']
)
def test_a_broken_request_is_no_request(content, run, tmp_path, impatient):
    (tmp_path / "request.json").write_text(content)
    profiler = Profiler(ON_DEMAND, tmp_path, run.model, strict=True)
    run.train(profiler, 3)
    profiler.close()
    assert profiler.windows == []


def test_a_run_that_ends_before_it_could_answer_says_so(run, tmp_path, impatient):
    profiler = Profiler(ON_DEMAND, tmp_path, run.model, strict=True)
    run.train(profiler, 2)
    request = request_window(tmp_path, active=2)
    run.train(profiler, 1)
    profiler.close()
    assert read_answer(tmp_path, request)["error"] == "no window: training ended before a whole step was recorded."


def test_looking_for_requests_is_rare(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(requests, "read_request", lambda folder: looks.append(folder))
    poller = RequestPoller(tmp_path, rank=0, world_size=1)
    for step in range(1000):
        poller.due(step, 0.01)
    assert len(looks) == 1


def test_all_ranks_open_a_window_at_the_same_step(tmp_path, impatient):
    pollers = [RequestPoller(tmp_path, rank=rank, world_size=3) for rank in range(3)]
    request = request_window(tmp_path, active=2)
    assert pollers[1].due(10, 0.01) is None  # before rank zero has chosen
    assert pollers[0].due(10, 0.01) is None
    chosen = read_request(tmp_path).step
    assert chosen > 10
    for poller in pollers:
        assert [step for step in range(11, chosen + 5) if poller.due(step, 0.01)] == [chosen]
    pollers[1].answer(request, window="x")
    assert read_request(tmp_path) is not None  # only rank zero answers
    pollers[0].answer(request, window="x")
    assert read_request(tmp_path) is None
    request_from_ranks(tmp_path, Reason("slow_step", "because"), active=3)
    assert read_request(tmp_path).reason == Reason("slow_step", "because")


def test_a_request_can_come_from_another_thread_while_the_loop_goes_on(run, tmp_path, impatient):
    profiler = Profiler(ON_DEMAND, tmp_path, run.model, strict=True)
    profiler.begin(0)
    done = threading.Event()
    answers = []

    def somebody():
        request = request_window(tmp_path, active=1)
        deadline = time.monotonic() + 60
        while not answers and time.monotonic() < deadline:
            if answer := read_answer(tmp_path, request):
                answers.append(answer)
            time.sleep(0.01)
        done.set()

    threading.Thread(target=somebody, daemon=True).start()
    while not done.is_set():
        run.step()
        profiler.step()
    profiler.close()
    assert (tmp_path / answers[0]["window"] / "summary.json").exists()


def test_the_untouched_trace_is_kept_on_request(run, tmp_path):
    with gradlab.profile(tmp_path, run.model, raw=True, strict=True) as profiler:
        run.step()
    (found,) = profiler.windows
    import gzip

    raw = json.loads(gzip.decompress((found / "rank0.kineto.json.gz").read_bytes()))
    categories = {event.get("cat") for event in raw["traceEvents"]}
    assert {"fwdbwd", "cpu_op"} <= categories and "forward_backward" not in categories


def test_a_window_that_was_cut_short_says_so(tmp_path):
    run = Run()
    profiler = Profiler(Profile(wait=0, warmup=0, active=50), tmp_path, run.model, strict=True)
    run.train(profiler, 3)
    profiler.close()
    (note,) = read_summary(profiler.windows[0])["notes"]
    assert note == "closed early, with 3 of 50 steps: training was interrupted or ended."
