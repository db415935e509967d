import pytest

from gradlab.profiling.verdict import Shares, judge


@pytest.mark.parametrize(
    ("data", "overhead", "device_busy", "bound"),
    [
        (0.25, 0.1, None, "input"),
        (0.25, 0.9, 0.9, "input"),  # what starves everything else comes first
        (0.1, 0.6, None, "host"),
        (0.1, 0.3, None, "compute"),
        (0.1, 0.9, 0.95, "compute"),  # a busy device hides what the host does meanwhile
        (0.1, 0.1, 0.4, "host"),
    ],
)
def test_the_verdict_follows_from_the_shares(data, overhead, device_busy, bound):
    shares = Shares(data=data, overhead=overhead, device_busy=device_busy)
    verdict = judge(shares, step_ms=20.0, largest=("encoder.0", 0.7))
    assert verdict.bound == bound
    assert verdict.sentence.startswith(f"{bound}-bound: ") and len(verdict.attempts) == 3


def test_the_sentences_carry_their_evidence():
    def sentence(**shares):
        return judge(Shares(**shares), step_ms=20.0, largest=("encoder.0", 0.7)).sentence

    assert sentence(data=0.42, overhead=0.1, device_busy=None) == (
        "input-bound: 42% of a step (8.4 of 20 ms) waits for the next batch."
    )
    assert sentence(data=0.0, overhead=0.1, device_busy=0.24) == (
        "host-bound: the device computes during 24% of a step and waits for the host to launch work in the rest."
    )
    assert sentence(data=0.0, overhead=0.1, device_busy=0.97) == (
        "compute-bound: the device computes during 97% of a step, 70% of it in encoder.0."
    )
    assert sentence(data=0.1, overhead=0.83, device_busy=None) == (
        "host-bound: 83% of the step without its data wait goes to Python, the autograd engine and operators of less "
        "than 5 us."
    )
