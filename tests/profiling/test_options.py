import pytest

from gradlab.errors import ProfileError
from gradlab.profiling.options import ON_DEMAND, Profile, Trigger
from gradlab.profiling.triggers import Limits, StepTimeTriggers
from gradlab.profiling.window import Reason, Window


def starts(options, last):
    return [step for step in range(last) if options.starts(step)]


def test_the_schedule_waits_and_records_and_then_does_so_again():
    assert starts(Profile(wait=2, warmup=1, active=2, repeat=2), 20) == [2, 7]


def test_without_repeat_there_is_one_window():
    assert starts(Profile(wait=2, warmup=1, active=2), 20) == [2]


def test_every_opens_the_first_window_early_and_then_one_every_so_many_steps():
    assert starts(Profile(wait=2, warmup=1, active=2, every=10), 40) == [2, 12, 22, 32]
    assert starts(Profile(wait=2, warmup=1, active=2, every=10, repeat=2), 40) == [2, 12]


def test_on_demand_opens_none_by_itself():
    assert starts(ON_DEMAND, 100) == []


def test_a_window_warms_up_and_records():
    window = Window(reason=Reason("schedule"), warmup=1, active=2)
    states = []
    for num_ended in range(3):
        window.num_ended = num_ended
        states.append(window.state)
    assert states == ["warmup", "active", "last"]


@pytest.mark.parametrize(("step", "following"), [(0, 5), (4, 5), (5, 10)])
def test_after_a_window_that_was_cut_short_comes_the_next_one_of_the_schedule(step, following):
    assert Profile(wait=2, warmup=1, active=2, repeat=3).after_window(step) == following
    assert Profile(wait=2, warmup=1, active=2, every=9).after_window(step) == step


@pytest.mark.parametrize(
    "wrong", [{"wait": -1}, {"active": 0}, {"repeat": -1}, {"warmup": True}, {"active": 2.0}, {"every": 0}]
)
def test_a_schedule_that_means_nothing_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ProfileError, match=f"{name} must be a whole number from"):
        Profile(**wrong)


def test_limits_that_mean_nothing_are_refused():
    with pytest.raises(ProfileError, match=r"every=4 leaves no room for a window of 2 \+ 3 steps"):
        Profile(every=4)
    with pytest.raises(ProfileError, match="max_share must be a share above 0"):
        Profile(max_share=5)
    with pytest.raises(ProfileError, match=r"slow_step must be a multiple of the median step, above 1, or None"):
        Trigger(slow_step=0.5)
    with pytest.raises(ProfileError, match="data_wait must be a share between 0 and 1, or None, got 20"):
        Trigger(data_wait=20)


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
