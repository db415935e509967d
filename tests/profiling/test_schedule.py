import pytest

from gradlab.errors import ProfileError
from gradlab.profiling.schedule import Profile


def test_the_schedule_waits_warms_up_and_records_and_then_does_so_again():
    options = Profile(wait=2, warmup=1, active=2, repeat=2)
    assert [options.phase(step) for step in range(11)] == [
        *("off", "off", "warmup", "active", "last"),
        *("off", "off", "warmup", "active", "last"),
        "off",
    ]


@pytest.mark.parametrize(("step", "following"), [(0, 5), (4, 5), (5, 10)])
def test_the_next_window_belongs_to_the_next_turn_of_the_schedule(step, following):
    assert Profile(wait=2, warmup=1, active=2).next_window(step) == following


@pytest.mark.parametrize("wrong", [{"wait": -1}, {"active": 0}, {"repeat": 0}, {"warmup": True}, {"active": 2.0}])
def test_a_schedule_that_means_nothing_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ProfileError, match=f"{name} must be at least"):
        Profile(**wrong)
