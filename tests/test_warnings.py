"""A script's warnings appear as often as without gradlab, and gradlab's own work gives none."""

import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch

from gradlab.errors import without_warnings

PROGRAM = """
    import sys, threading, warnings, logging
    import torch
    from torch import nn

    how, is_watched = sys.argv[1], sys.argv[2] == "watched"
    if how == "captured":
        logging.basicConfig(stream=sys.stderr)
        logging.captureWarnings(True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            warnings.warn("once, please")
            warnings.warn(f"of {len(x)} rows", DeprecationWarning)
            if how == "thread":
                thread = threading.Thread(target=warnings.warn, args=("from a thread",))
                thread.start()
                thread.join()
            return self.fc(x)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if is_watched:
        import gradlab
        profile = gradlab.Profile(wait=4, warmup=1, active=2)
        monitor = gradlab.watch(model, optimizer, logdir=sys.argv[3], profile=profile)
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    if is_watched:
        monitor.close()
    print(torch.stack([p.sum() for p in model.parameters()]).numel())
"""


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ((), "plain"),
        pytest.param(("-W", "default"), "thread", marks=pytest.mark.slow),
        pytest.param(("-W", "once"), "plain", marks=pytest.mark.slow),
        pytest.param(("-W", "error::RuntimeWarning"), "captured", marks=pytest.mark.slow),
    ],
)
def test_the_warnings_of_a_script_appear_as_often_as_without_gradlab(tmp_path, flags, how):
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(PROGRAM))
    said = []
    for watched in ("bare", "watched"):
        command = [sys.executable, *flags, str(program), how, watched, str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        ours = ("USDT:", "profiler", "[W", "STAGE:")
        said.append([line for line in done.stderr.splitlines() if "Warning" in line and not line.startswith(ours)])
    assert said[0] == said[1] and said[0]


def gives(text, category=UserWarning):
    warnings.warn(text, category, stacklevel=1)


def test_the_filters_are_left_as_they_were():
    before, version = list(warnings.filters), warnings.filters
    with without_warnings():
        gives("dropped, though warnings are errors here")
    assert warnings.filters is version and warnings.filters == before


def test_what_was_shown_once_is_not_shown_again():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        gives("once")
        with without_warnings():
            gives("once")
            gives("another")
        gives("once")
        gives("another")
    assert [str(one.message) for one in caught] == ["once", "another"]


def test_only_what_is_named_is_dropped():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_warnings(DeprecationWarning):
            gives("old", DeprecationWarning)
            gives("new")
        with without_warnings(message="of no "):
            gives("of no matter")
            gives("of some matter")
    assert [str(one.message) for one in caught] == ["new", "of some matter"]


def test_other_threads_still_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_warnings():
            thread = threading.Thread(target=gives, args=("from elsewhere",))
            thread.start()
            thread.join()
            torch.ones(2).requires_grad_().sum().grad  # noqa: B018 - warns from C++
    assert [str(one.message) for one in caught] == ["from elsewhere"]


def test_warnings_that_somebody_catches_meanwhile_leave_nothing_behind():
    before = list(warnings.filters)
    ours, theirs = without_warnings(), warnings.catch_warnings()
    ours.__enter__()
    theirs.__enter__()
    ours.__exit__(None, None, None)
    assert warnings.filters == before
    theirs.__exit__(None, None, None)
    assert warnings.filters == before
    theirs = warnings.catch_warnings()
    theirs.__enter__()
    ours.__enter__()
    theirs.__exit__(None, None, None)
    ours.__exit__(None, None, None)
    assert warnings.filters == before


def test_an_exception_inside_takes_the_filter_along():
    before = list(warnings.filters)
    with pytest.raises(ValueError, match="on purpose"), without_warnings():
        raise ValueError("on purpose")
    assert warnings.filters == before
