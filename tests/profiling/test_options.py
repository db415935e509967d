import pytest

from gradlab.errors import ProfileError
from gradlab.profiling.options import ON_DEMAND, Profile, Trigger


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
