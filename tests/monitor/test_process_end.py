"""The end of watching where nobody calls `close()`: a script that ends, a model that is gone, a folder used twice."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
from scripts import Script
from torch import nn

import gradlab
from gradlab.errors import GradlabWarning, TapError
from gradlab.events.reader import event_files, read_events
from gradlab.sinks import MemorySink


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A script that the test writes."""
    return Script(tmp_path)


def steps_in(folder: Path) -> list[int]:
    """The steps that have gradients in the event files of a folder."""
    values = (one for file in event_files(folder) for one in read_events(file))
    return [one.step for one in values if one.plugin_name == "gradlab" and "/x" not in one.tag]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    """A few steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with modules and ops, and its optimizer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), 0.1)


class ClosingSink(MemorySink):
    """Tells whether it was closed."""

    closed = False

    def close(self) -> None:
        """It is."""
        self.closed = True


ENDS = """
import multiprocessing, os, signal, threading
import gradlab

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
net = Net()
optimizer = torch.optim.SGD(net.parameters(), 0.1)

def watched(name):
    gradlab.watch(net, optimizer, logdir=name)
    train(net, optimizer, 20)

def falls_off(): watched("falls_off")
def exits(): watched("exits"); sys.exit(3)
def raises(): watched("raises"); raise ArithmeticError("as it was")
def interrupted(): watched("interrupted"); signal.raise_signal(signal.SIGINT)
def in_a_thread(): threading.Thread(target=watched, args=("in_a_thread",)).start()
def becomes_another(): watched("becomes_another"); os.execvp(sys.executable, [sys.executable, "-c", "print('another')"])
def stays():
    watched("stays")
    try:
        os.execvp("no-such-program", ["no-such-program"])
    except FileNotFoundError:
        train(net, optimizer, 5)
def forks():
    watched("forks")
    if os.fork() == 0:
        train(net, optimizer, 5)  # and ends as a script does
    else:
        os.wait()
def in_a_child():
    child = multiprocessing.get_context("fork").Process(target=watched, args=("in_a_child",))
    child.start(); child.join()
with gradlab.watch(net, optimizer, logdir="before"):
    train(net, optimizer, 5)  # what is imported for it is there in all children

for end in (exits, raises, interrupted, in_a_thread, becomes_another, stays, forks, in_a_child):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        end()
        break
    print(end.__name__, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    falls_off()
    print("falls_off", 0)
"""


def test_every_step_is_delivered_however_a_script_ends(script: Script) -> None:
    ended = script.write(ENDS).bare()
    assert ended.code == 0, ended.stderr
    codes = dict(line.split() for line in ended.stdout.splitlines() if " " in line)
    expected = {"exits": "3", "raises": "1", "interrupted": "-2"}
    assert codes == {name: expected.get(name, "0") for name in codes} and len(codes) == 9
    for name in codes:
        seen = sorted(set(steps_in(script.folder / name)))
        assert seen == list(range(25 if name == "stays" else 20)), name
        assert len(event_files(script.folder / name)) == 1, name
        assert steps_in(script.folder / name) == sorted(steps_in(script.folder / name)), name
    assert "ArithmeticError: as it was" in ended.stderr and "radlab" not in ended.stderr.replace("/gradlab/", "")


def test_a_model_without_a_monitor_that_anybody_keeps_is_let_go_with_all_its_steps(tmp_path: Path) -> None:
    taps = [gradlab.Tap("*", of=["weight_grad", "output", "output_grad"])]
    for name in ("model", "optimizer", "both", "nobody counted"):
        model, optimizer = pair()
        gone, sink = weakref.ref(model), ClosingSink()
        given = () if name == "nobody counted" else (optimizer,)
        gradlab.watch(model, *given, logdir=tmp_path / name, taps=taps, sinks=[sink])
        del given
        gc.collect()
        train(model, optimizer)
        if name == "optimizer":
            gc.disable()
            del optimizer
            assert sink.closed and not model._load_state_dict_post_hooks
            del model
            assert gone() is None, "without its optimizer a model is as free as if nobody had watched it"
            gc.enable()
        else:
            del model
            if name == "both":
                del optimizer
            gc.collect()
            assert gone() is None and sink.closed
        assert sorted(set(steps_in(tmp_path / name))) == [0, 1, 2, 3], name


def test_a_monitor_that_somebody_keeps_goes_on_with_another_optimizer() -> None:
    model, optimizer = pair()
    monitor = gradlab.watch(model, optimizer)
    train(model, optimizer)
    optimizer = torch.optim.Adam(model.parameters())
    monitor.add_optimizer(optimizer)
    train(model, optimizer)
    assert monitor.step == 8 and not monitor.is_closed
    monitor.close()
    assert not model._load_state_dict_post_hooks


def test_a_cell_that_is_run_again_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    cell = """
model, optimizer = pair()
monitor = gradlab.watch(model, optimizer, logdir=folder)
train(model, optimizer)
"""
    names = {"pair": pair, "train": train, "gradlab": gradlab, "folder": folder}
    exec(cell, names)
    assert names["monitor"].logdir == folder
    for number in (2, 3):
        with pytest.warns(GradlabWarning, match=rf"x has the series of another training, .* are in .*x-{number}\."):
            exec(cell, names)
        assert names["monitor"].logdir == tmp_path / f"x-{number}"
    names["monitor"].close()
    exec(cell.replace("logdir=folder", "logdir=folder, first_step=4"), names)
    names["monitor"].close()
    for one, steps in (("x", 8), ("x-2", 4), ("x-3", 4)):
        assert sorted(set(steps_in(tmp_path / one))) == list(range(steps))


def test_two_models_at_once_have_a_folder_each_and_an_attempt_without_a_step_leaves_none(tmp_path: Path) -> None:
    first, second = pair(), pair()
    with pytest.raises(TapError):
        gradlab.watch(*first, logdir=tmp_path, taps=[gradlab.Tap("nothing", of="weight_grad")])
    gradlab.watch(*first, logdir=tmp_path / "a").close()
    with gradlab.watch(*first, logdir=tmp_path / "a") as one:
        assert one.logdir == tmp_path / "a"
        with pytest.warns(GradlabWarning, match="has the series of another"):
            other = gradlab.watch(*second, logdir=tmp_path / "a")
        assert other.logdir == tmp_path / "a-2"
        other.close()


RESTARTS = """
import json, os
net = Net()
train(net, torch.optim.SGD(net.parameters(), 0.1), 5)
if len(sys.argv) < 3:
    try: os.execv("/no/such/program", ["x"])
    except FileNotFoundError: pass
    os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
print(sys.argv)
sys.exit(3)
"""


def test_an_attached_script_that_becomes_itself_again_is_one_run(script: Script) -> None:
    ended = script.write(RESTARTS).attached("x")
    assert (ended.code, ended.stdout) == (3, "['train.py', 'x', 'again']\n"), ended.stderr
    first, second = ended.event_files
    assert {*steps_in(first.parent)} == set(range(10)) and first.parent == second.parent
    assert "10 steps in" in ended.stderr
    end = ended.run.read_exit()
    assert (end["code"], end["reason"], end["attempt"]) == (3, "sys.exit(3)", 2)
    assert json.loads(ended.run.summary.read_text())["steps"] == 10
    assert len(json.loads(ended.run.record.read_text())["resumed"]) == 1


@pytest.mark.slow
def test_an_attached_script_that_becomes_another_program_has_its_steps_and_the_last_code(script: Script) -> None:
    code = "import os\nnet = Net(); train(net, torch.optim.SGD(net.parameters(), 0.1), 5)\n"
    python = f"os.execv({sys.executable!r}, ['python', '-c', 'raise SystemExit(4)'])"
    ended = script.write(code + python).attached()
    assert ended.code == 4 and sorted(set(steps_in(ended.run.events))) == list(range(5))
    ended.run.path.rename(script.folder / "before")
    ended = script.write(code + "os.execv('/bin/true', ['true'])").attached()
    assert (
        ended.code == 0 and ended.run.status() == "done" and sorted(set(steps_in(ended.run.events))) == list(range(5))
    )
