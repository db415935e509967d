"""The causes of idle time, on timelines made by hand. Microseconds."""

import pytest

from gradlab.profiling.analysis.events import Event
from gradlab.profiling.analysis.idle import idle_gaps

US = 1000


def kernel(number, start, end):
    return Event(f"kernel{number}", start * US, end * US, 7, True, correlation=number, launched_by=100 + number)


def call(number, start, end, name="cudaLaunchKernel"):
    return Event(name, start * US, end * US, 1, False, correlation=number, launched_by=100 + number)


def causes(kernels, calls, waits=(), span=(0, 1000)):
    found = idle_gaps(kernels, calls, [(a * US, b * US) for a, b in waits], (span[0] * US, span[1] * US))
    return [(gap.cause, gap.start // US, gap.end // US) for gap in found]


def test_a_kernel_that_was_in_the_queue_waited_for_something_else():
    kernels = [kernel(1, 0, 100), kernel(2, 104, 1000)]
    assert causes(kernels, [call(1, 0, 0), call(2, 10, 20)]) == [("queue", 100, 104)]


def test_a_kernel_that_was_launched_late_waited_for_the_host():
    kernels = [kernel(1, 0, 100), kernel(2, 400, 1000)]
    assert causes(kernels, [call(1, 0, 0), call(2, 390, 395)]) == [("host", 100, 400)]


def test_while_the_host_waits_for_a_batch_the_device_waits_for_data():
    kernels = [kernel(1, 0, 100), kernel(2, 600, 1000)]
    found = causes(kernels, [call(1, 0, 0), call(2, 590, 595)], waits=[(40, 60), (150, 500)])
    assert found == [("host", 100, 150), ("data", 150, 500), ("host", 500, 600)]


def test_after_a_synchronization_the_queue_is_empty():
    kernels = [kernel(1, 0, 100), kernel(2, 300, 1000)]
    synchronizes = call(9, 20, 105, "cudaStreamSynchronize")
    assert causes(kernels, [call(1, 0, 0), synchronizes, call(2, 290, 295)]) == [("sync", 100, 300)]
    long_before = call(9, 20, 30, "cudaStreamSynchronize")
    assert causes(kernels, [call(1, 0, 0), long_before, call(2, 290, 295)]) == [("host", 100, 300)]


def test_kernels_of_several_streams_leave_no_gap_where_one_of_them_runs():
    kernels = [kernel(1, 0, 600), kernel(2, 100, 200), kernel(3, 500, 1000)]
    assert causes(kernels, [call(n, 0, 1) for n in (1, 2, 3)]) == []


def test_the_ends_of_a_window_count():
    assert causes([kernel(1, 200, 300)], [call(1, 190, 195)]) == [("host", 0, 200), ("host", 300, 1000)]
    assert causes([kernel(1, 200, 300), kernel(2, 1500, 1600)], [call(1, 190, 195), call(2, 250, 260)]) == [
        ("host", 0, 200),
        ("queue", 300, 1000),
    ]


def test_a_device_that_did_nothing_was_idle_all_the_time():
    assert causes([], []) == [("host", 0, 1000)]


def test_a_kernel_whose_launch_was_not_seen_explains_nothing_about_the_host():
    assert causes([kernel(1, 0, 100), kernel(2, 300, 1000)], [call(1, 0, 1)]) == [("queue", 100, 300)]


@pytest.mark.parametrize("seed", range(5))
def test_gaps_and_work_are_the_whole(seed):
    import random

    draw = random.Random(seed)
    starts = sorted(draw.randrange(1000) for _ in range(40))
    kernels = [kernel(n, start, start + draw.randrange(1, 60)) for n, start in enumerate(starts)]
    calls = [call(n, max(0, start - draw.randrange(1, 80)), start) for n, start in enumerate(starts)]
    waits = [(100, 160), (400, 480), (700, 720)]
    covered = {t for k in kernels for t in range(k.start // US, min(1000, k.end // US))}
    found = causes(kernels, calls, waits)
    idle = [t for _, start, end in found for t in range(start, end)]
    assert len(idle) == len(set(idle)) and covered | set(idle) == set(range(1000)) and not covered & set(idle)
