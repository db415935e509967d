import signal
import subprocess
import sys

import pytest
import torch
from profiling.example import Run, num_hooks, read_summary, read_trace, recorded_steps
from torch import nn

import gradlab
from gradlab.errors import GradlabWarning, ProfileError
from gradlab.profiling import kineto, recording, trace_file
from gradlab.profiling import profiler as profiler_module
from gradlab.profiling.options import Profile
from gradlab.profiling.profiler import Profiler


def names(profiled):
    return {event["name"] for event in read_trace(profiled)["traceEvents"]}


def test_windows_are_written_where_and_when_the_schedule_says(run, tmp_path):
    profiler = Profiler(Profile(wait=1, warmup=1, active=2, repeat=2), tmp_path, run.model, rank=3, strict=True)
    run.train(profiler, 10)
    profiler.close()
    assert [path.name for path in profiler.windows] == ["step_000002", "step_000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000006"]
    for path in profiler.windows:
        (file,) = path.glob("rank3.*.pt.trace.json.gz")
        assert (path / "summary.rank3.json").exists()
        assert file.name.split(".")[1].isdigit()


def test_a_step_holds_its_data_wait_forward_backward_and_optimizer(run, tmp_path):
    profiler = Profiler(Profile(wait=1, warmup=0, active=2), tmp_path, run.model, strict=True)
    run.train(profiler, 4)
    profiler.close()
    events = [event for event in read_trace(profiler.windows[0])["traceEvents"] if event["ph"] == "X"]
    steps = [event for event in events if event["name"].startswith("ProfilerStep#")]
    assert [event["name"] for event in steps] == ["ProfilerStep#1", "ProfilerStep#2"]
    for step in steps:
        end = step["ts"] + step["dur"]
        inside = [event["name"] for event in events if step["ts"] <= event["ts"] and event["ts"] + event["dur"] <= end]
        for name in ("enumerate(DataLoader)#gradlab.__next__", "[pl][module]Linear: 0", "AddmmBackward0"):
            assert name in inside
        assert "Optimizer.step#SGD.step" in inside


def test_a_step_that_nobody_announced_is_not_recorded_but_counted(run, tmp_path):
    profiler = Profiler(Profile(wait=0, warmup=0, active=2), tmp_path, strict=True)
    for number in range(100, 104):
        run.step()
        profiler.step(number)
    profiler.close()
    assert recorded_steps(profiler.windows[0]) == [101, 102]


def test_a_window_longer_than_the_run_keeps_the_whole_steps_it_has(run, tmp_path):
    profiler = Profiler(Profile(wait=1, warmup=0, active=50), tmp_path, run.model, strict=True)
    run.train(profiler, 3)
    run.model(run.x).cumsum(0)  # of a step that is never finished
    profiler.close()
    assert recorded_steps(profiler.windows[0]) == [1, 2]
    assert {"ProfilerStep#1", "ProfilerStep#2", "unfinished step 3"} <= names(profiler.windows[0])
    assert "ProfilerStep#3" not in names(profiler.windows[0])
    assert num_hooks(run.model) == 0


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_run_that_ends_before_a_recorded_step_leaves_nothing(run, tmp_path, num_steps):
    profiler = Profiler(Profile(wait=1, warmup=1, active=2), tmp_path, run.model, strict=True)
    run.train(profiler, num_steps)
    steps = "1 step" if num_steps == 1 else f"{num_steps} steps"
    sentence = f"no profile was recorded: training ended after {steps}, and the first window begins after 2 "
    with pytest.warns(GradlabWarning, match=sentence):
        profiler.close()
    assert profiler.windows == [] and list(tmp_path.iterdir()) == []
    assert num_hooks(run.model) == 0 and not recording.someone_else_is_profiling()


def test_no_window_is_open_while_training_is_paused(run, tmp_path):
    profiler = Profiler(Profile(wait=0, warmup=0, active=3, repeat=2), tmp_path, run.model, strict=True)
    run.train(profiler, 2)
    profiler.pause()
    assert num_hooks(run.model) == 0 and not recording.someone_else_is_profiling()
    torch.ones(3).cumsum(0)
    profiler.begin()
    for number in range(2, 6):
        run.step()
        profiler.step(number)
    profiler.close()
    assert [recorded_steps(path) for path in profiler.windows] == [[0, 1], [2, 3, 4]]
    assert all("aten::cumsum" not in names(path) for path in profiler.windows)


def test_a_pause_before_the_first_recorded_step_loses_no_window(run, tmp_path):
    profiler = Profiler(Profile(wait=0, warmup=2, active=1), tmp_path, run.model, strict=True)
    run.train(profiler, 1)
    profiler.pause()
    profiler.begin(1)
    for number in range(1, 4):
        run.step()
        profiler.step(number)
    profiler.close()
    assert [recorded_steps(path) for path in profiler.windows] == [[2]]


def test_hooks_are_there_in_the_window_only(run, tmp_path):
    profiler = Profiler(Profile(wait=1, warmup=0, active=1), tmp_path, run.model, strict=True)
    counts = []
    profiler.begin(0)
    for number in range(4):
        counts.append(num_hooks(run.model) > 0)
        run.step()
        profiler.step(number)
    profiler.close()
    assert counts == [False, True, False, False]


def test_training_is_bit_identical_with_and_without_windows(tmp_path):
    plain, profiled = Run(), Run()
    for _ in range(8):
        plain.step()
    options = Profile(wait=1, warmup=1, active=2, repeat=2, shapes=True)
    profiler = Profiler(options, tmp_path, profiled.model, strict=True)
    profiled.train(profiler, 8)
    profiler.close()
    assert len(profiler.windows) == 2
    assert plain.losses == profiled.losses
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, profiled.model.state_dict()[name])


def test_an_exception_inside_a_window_leaves_no_hook_and_keeps_the_whole_steps(run, tmp_path):
    with (
        pytest.raises(ValueError, match="on purpose"),
        gradlab.profile(tmp_path, run.model, strict=True) as profiler,
    ):
        run.step()
        profiler.step()
        run.model(run.x)
        raise ValueError("on purpose")
    assert num_hooks(run.model) == 0 and not recording.someone_else_is_profiling()
    assert recorded_steps(profiler.windows[0]) == [0]


def test_an_exception_in_the_first_step_leaves_no_file(run, tmp_path):
    with pytest.raises(ValueError, match="on purpose"), gradlab.profile(tmp_path, run.model, strict=True):
        raise ValueError("on purpose")
    assert list(tmp_path.iterdir()) == [] and num_hooks(run.model) == 0


def test_without_a_call_of_step_everything_inside_is_one_step(run, tmp_path):
    with gradlab.profile(tmp_path, run.model, strict=True) as profiler:
        run.step()
        run.step()
    assert profiler.windows == [tmp_path / "profile" / "step_000000"]
    assert recorded_steps(profiler.windows[0]) == [0]
    (calls,) = {row["calls"] for row in read_summary(profiler.windows[0])["modules"]}
    assert calls == 2


def test_a_profiler_of_somebody_else_is_left_alone(run, tmp_path):
    profiler = Profiler(Profile(wait=0, warmup=0, active=1, repeat=2), tmp_path, run.model, strict=True)
    with torch.profiler.profile() as theirs, pytest.warns(UserWarning, match="another profiler records") as caught:
        run.train(profiler, 2)
        profiler.pause()
    assert len(caught) == 1
    assert "aten::linear" in {event.name() for event in theirs.profiler.kineto_results.events()}
    assert num_hooks(run.model) == 0
    profiler.close()
    assert profiler.windows == [] and profiler.failure is None


def test_a_failing_export_warns_once_and_leaves_nothing_that_looks_finished(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(trace_file, "tensorboard_dialect", fail)
    profiler = Profiler(Profile(wait=0, warmup=0, active=1, repeat=3), tmp_path, run.model)
    with pytest.warns(UserWarning, match=r"failed: OSError: no space left on device. Training goes on") as caught:
        run.train(profiler, 5)
        profiler.close()
    assert len(caught) == 1
    assert list(tmp_path.rglob("*")) == [] and profiler.windows == []
    assert len(run.losses) == 5 and num_hooks(run.model) == 0


def test_a_process_killed_while_it_writes_leaves_nothing_that_can_be_seen(tmp_path):
    program = """
import os, signal, sys, torch, gradlab
from torch import nn
from gradlab.profiling import trace_file

def killed(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

trace_file._zipped = killed
model = nn.Linear(4, 4)
with gradlab.profile(sys.argv[1], model):
    model(torch.ones(2, 4)).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("*.pt.trace.json*")) and not list(tmp_path.rglob("summary.json"))
    assert all(path.name.startswith(".writing-") for path in (tmp_path / "profile").iterdir())
    run = Run()
    with gradlab.profile(tmp_path, run.model, strict=True) as profiler:  # the next one is not in its way
        run.step()
    assert [path.name for path in (tmp_path / "profile").glob("[!.]*")] == [profiler.windows[0].name]


def test_a_failing_range_switches_off_cleanly(run, tmp_path, monkeypatch):
    def fail(name):
        raise RuntimeError("no such range")

    monkeypatch.setattr(recording, "Range", fail)
    profiler = Profiler(Profile(wait=0, warmup=0, active=2), tmp_path, run.model)
    with pytest.warns(UserWarning, match="no such range"):
        run.train(profiler, 3)
        profiler.close()
    assert num_hooks(run.model) == 0 and not recording.someone_else_is_profiling()


def test_strict_raises_what_otherwise_warns(run, tmp_path):
    (tmp_path / "taken").write_text("a file, not a directory")
    profiler = Profiler(Profile(wait=0, warmup=0, active=1), tmp_path / "taken", run.model, strict=True)
    with pytest.raises(ProfileError, match="taken failed: FileExistsError"):
        run.train(profiler, 1)  # where the writing is quick
        profiler.close()
    profiler.close()


def test_torch_without_the_fast_range_is_served_by_the_public_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "Range", torch.autograd.profiler.record_function)
    with gradlab.profile(tmp_path, run.model, strict=True) as profiler:
        run.step()
    assert recorded_steps(profiler.windows[0]) == [0]


def test_stacks_and_shapes_are_recorded_on_request(run, tmp_path):
    with gradlab.profile(tmp_path, nn.Identity(), shapes=True, stack=True, strict=True) as profiler:
        run.step()
    arguments = [event.get("args", {}) for event in read_trace(profiler.windows[0])["traceEvents"]]
    assert any("Input Dims" in args for args in arguments)
    assert any("Call stack" in args for args in arguments)


def test_a_window_with_stacks_has_the_same_summary_as_one_without(run, tmp_path):
    told = []
    for stack in (False, True):
        with gradlab.profile(
            tmp_path / str(stack), run.model, stack=stack, warmup=1, active=2, strict=True
        ) as profiler:
            for _ in range(3):
                run.step()
                profiler.step()
        summary = read_summary(profiler.windows[0])
        assert all(summary["mean"][f"{phase}_ms"] > 0 for phase in ("forward", "backward", "optimizer"))
        modules = [(row["name"], row["calls"], row["retained_bytes"]) for row in summary["modules"]]
        calls = {row["name"]: row["calls"] for row in summary["operators"]}
        told.append((modules, calls["aten::addmm"], calls["aten::mm"]))
    assert told[0] == told[1]
    assert [name for name, *_ in told[1][0]] == ["", "0", "1", "2"]


def test_a_torch_that_does_not_say_what_python_is_is_known_by_its_names(run):
    with torch.profiler.profile(with_stack=True, profile_memory=True) as profiler:
        run.step()
    events = profiler.profiler.kineto_results.events()
    assert {event.is_python_function() for event in events} == {False, True}
    for event in events:
        assert (kineto._PYTHON.match(event.name()) is not None) == event.is_python_function(), event.name()


def test_outside_windows_a_step_costs_only_the_schedule(run, tmp_path, monkeypatch):
    monkeypatch.setattr(profiler_module, "Recording", None)  # would fail if it were touched
    profiler = Profiler(Profile(wait=100), tmp_path, run.model, strict=True)
    run.train(profiler, 20)
    with pytest.warns(GradlabWarning, match="no profile was recorded"):
        profiler.close()
    assert list(tmp_path.iterdir()) == []


def test_a_window_that_was_cut_short_says_so(tmp_path):
    run = Run()
    profiler = Profiler(Profile(wait=0, warmup=0, active=50), tmp_path, run.model, strict=True)
    run.train(profiler, 3)
    profiler.close()
    (note,) = read_summary(profiler.windows[0])["notes"]
    assert note == "closed early, with 3 of 50 steps: training was interrupted or ended."
