import pytest

from gradlab.profiling.analysis.ranks import with_ranks
from gradlab.profiling.analysis.verdict import Shares, judge


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
    assert sentence(data=0.0, overhead=0.1, device_busy=0.4, sync=0.8) == (
        "host-bound: the device computes during 40% of a step; 80% of its idle time follows calls in which the host "
        "waited for it."
    )
    assert sentence(data=0.0, overhead=0.1, device_busy=0.97, dense=0.2) == (
        "memory-bound: the device computes during 97% of a step; 80% of the computing time moves memory (pointwise "
        "operators, reductions, copies), 70% of it in encoder.0."
    )
    assert sentence(data=0.0, overhead=0.1, device_busy=0.97, dense=0.9, communication=0.4) == (
        "communication-bound: during 40% of a step the device only exchanges data."
    )
    assert sentence(data=0.1, overhead=0.83, device_busy=None) == (
        "host-bound: 83% of the step without its data wait goes to Python, the autograd engine and operators of less "
        "than 5 us."
    )


def test_after_synchronizations_the_first_thing_to_try_is_to_have_none():
    shares = Shares(data=0.0, overhead=0.1, device_busy=0.4, sync=0.8)
    verdict = judge(shares, step_ms=20.0, largest=("encoder.0", 0.7))
    assert verdict.attempts[0].startswith("no .item()") and len(verdict.attempts) == 3


def ranks(*collectives, **excess):
    """Summaries of ranks with these times in collectives; `excess` is what rank zero does longer."""
    base = {"data_ms": 5.0, "forward_ms": 20.0, "backward_ms": 60.0, "optimizer_ms": 10.0, "other_ms": 5.0}
    found = []
    for rank, collective in enumerate(collectives):
        mean = {"ms": 100.0, **base} | ({key: base[key] + more for key, more in excess.items()} if rank == 0 else {})
        found.append({"rank": rank, "mean": mean, "collectives_ms": collective, "verdict": {"shares": {}}})
    return found


def test_the_rank_that_the_others_wait_for_straggles():
    joined = with_ranks(ranks(2.0, 32.0, 30.0, 31.0, data_ms=28.0)[::-1])
    assert joined["rank"] == 0 and [row["rank"] for row in joined["ranks"]] == [0, 1, 2, 3]
    assert joined["verdict"]["bound"] == "straggler"
    assert joined["verdict"]["sentence"] == (
        "straggling rank: the others wait 29 ms of each step (29%) for rank 0; its data wait takes 28 ms longer."
    )


def test_ranks_that_wait_alike_have_no_straggler():
    summaries = ranks(20.0, 24.0, 22.0)
    assert with_ranks(summaries)["verdict"] == {"shares": {}}
    assert with_ranks(ranks(20.0))["ranks"][0]["collectives_ms"] == 20.0
