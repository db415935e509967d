"""Requests for a window from another process, another thread or another rank."""

import threading
import time

import pytest
from profiling.example import read_summary, recorded_steps

from gradlab.profiling import requests
from gradlab.profiling.options import ON_DEMAND, Profile
from gradlab.profiling.profiler import Profiler
from gradlab.profiling.requests import (
    RequestPoller,
    read_answer,
    read_request,
    request_from_all_ranks,
    request_window,
)
from gradlab.profiling.window import Reason


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
    request_from_all_ranks(tmp_path, Reason("slow_step", "because"), active=3)
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
