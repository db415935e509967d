"""The bookkeeping of phases, on a clock that the tests set."""

import pytest
import torch

from gradlab.perf import clock as clock_module
from gradlab.perf.clock import PhaseClock
from gradlab.perf.phases import PHASES


class Time:
    """A host clock in nanoseconds that moves when it is told."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock_module, "perf_counter_ns", time)
    return time


def spent(times):
    return {phase: value for phase, value in times.phases.items() if value}


def test_every_instant_belongs_to_the_innermost_phase(time):
    clock = PhaseClock(torch.device("cpu"))
    for wait, call in [
        (1, lambda: clock.enter("data")),
        (10, clock.leave),
        (2, lambda: clock.enter("optimizer")),  # whose closure runs the rest
        (3, lambda: clock.enter("forward")),
        (100, lambda: clock.enter("callbacks")),
        (5, clock.leave),
        (7, clock.leave),
        (4, lambda: clock.enter("backward")),
        (200, clock.leave),
        (6, clock.leave),
        (9, lambda: None),
    ]:
        time.now += wait
        call()
    (times,) = clock.end_step(3)
    assert times.step == 3
    expected = {"data": 10, "optimizer": 13, "forward": 107, "callbacks": 5, "backward": 200, "other": 12}
    assert spent(times) == expected and times.total == sum(expected.values()) == time.now
    assert clock.data_ns == 10 and set(times.phases) == set(PHASES)


def test_what_is_in_no_phase_can_be_given_one(time):
    clock = PhaseClock(torch.device("cpu"))
    clock.enter("forward")
    time.now += 5
    clock.leave()
    clock.set_default("loss")
    time.now += 3
    clock.enter("data")
    clock.set_default("other")  # while another phase is open
    time.now += 1
    clock.leave()
    time.now += 2
    assert spent(clock.end_step(0)[0]) == {"forward": 5, "loss": 3, "data": 1, "other": 2}


def test_a_step_that_ended_inside_a_phase_leaves_it_or_stays_in_it(time):
    clock = PhaseClock(torch.device("cpu"))
    clock.enter("callbacks")
    time.now += 4
    clock.end_step(0, keep_open=True)
    time.now += 2
    clock.leave()
    assert spent(clock.end_step(1)[0]) == {"callbacks": 2}
    clock.enter("backward")  # which raised, so that nobody left it
    clock.end_step(2)
    time.now += 8
    assert spent(clock.end_step(3)[0]) == {"other": 8}
    clock.leave()  # one too many does no harm


def test_a_restart_forgets_the_step_under_way(time):
    clock = PhaseClock(torch.device("cpu"))
    clock.enter("data")
    time.now += 100
    clock.restart()
    time.now += 1
    (times,) = clock.end_step(0)
    assert spent(times) == {"other": 1} and times.total == 1


class Queue:
    """A stand-in for a CUDA stream: work is queued at once and done later."""

    def __init__(self):
        self.queued = 0.0
        self.done = 0.0
        self.num_made = 0

    def event(self, enable_timing):
        assert enable_timing
        self.num_made += 1
        return Event(self)


class Event:
    def __init__(self, queue):
        self.queue, self.at = queue, None

    def record(self, stream):
        self.at = self.queue.queued

    def query(self):
        return self.at <= self.queue.done

    def elapsed_time(self, end):
        assert self.query() and end.query(), "reading an event that the device has not passed raises"
        return end.at - self.at


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return queue


def one_step(clock, queue, time, number):
    """Ten milliseconds on the device, one on the host, three of which wait for data."""
    for phase, on_device, on_host in [("data", 0, 0.3), ("h2d", 1, 0.1), ("forward", 3, 0.2), ("backward", 5, 0.2)]:
        clock.enter(phase)
        queue.queued += on_device
        time.now += int(on_host * 1e6)
        clock.leave()
    clock.enter("optimizer")
    queue.queued += 1
    time.now += 200_000
    clock.leave()
    return clock.end_step(number)


def test_on_a_gpu_the_phases_are_the_devices_own_and_known_when_it_is_done(time, queue):
    clock = PhaseClock(torch.device("cuda:0"))
    assert one_step(clock, queue, time, 0) == []
    queue.done = 9.0
    assert one_step(clock, queue, time, 1) == []  # the device is still in the first step: nothing waits for it
    queue.done = 20.0
    found = one_step(clock, queue, time, 2)
    assert [times.step for times in found] == [0, 1]
    for times in found:
        milliseconds = {phase: value / 1e6 for phase, value in spent(times).items()}
        assert milliseconds == {"data": 0.3, "h2d": 1.0, "forward": 3.0, "backward": 5.0, "optimizer": 1.0}
        assert times.total == 1_000_000  # the host is ahead, so its step is shorter than the device's


def test_cuda_events_are_used_again(time, queue):
    clock = PhaseClock(torch.device("cuda:0"))
    for number in range(50):
        queue.done = queue.queued
        one_step(clock, queue, time, number)
    assert queue.num_made < 40
