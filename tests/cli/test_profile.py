"""`gradlab profile`: what it prints, and what it says where there is nothing to print."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradlab.events import event_files, read_events
from gradlab.profiling.files import windows_in
from gradlab.profiling.requests import read_request

PLAN = "profile={wait: 2, warmup: 1, active: 2}"


@pytest.fixture
def profiled(gradlab, experiment, the_run):
    assert gradlab("run", experiment, PLAN).exit_code == 0
    return the_run()


def test_show_prints_the_verdict_and_the_tables(gradlab, profiled):
    result = gradlab("profile", "show", "@1")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1] == "step_000003  steps 3 to 4, rank 0  (schedule)"
    assert "-bound: " in lines[2] and lines[3].startswith("  try ")
    for title in ("step, ms", "modules, ms a step", "operators, ms a step", "memory of cpu at its peak"):
        assert title in lines
    module = next(line for line in lines if line.startswith("net.0 "))
    assert module.split()[1:3] == ["Linear", "1"]
    assert any(line.startswith("optimizer state ") for line in lines)
    assert lines[-1] == f"files: {profiled.events}/profile/step_000003"


def test_show_takes_a_window_by_name_or_number_and_json(gradlab, profiled):
    for name in ("step_000003", "3"):
        summary = json.loads(gradlab("profile", "show", profiled.id, name, "--json").stdout)
        assert summary["schema"] == 2 and [row["step"] for row in summary["steps"]] == [3, 4]
    result = gradlab("profile", "show", profiled.id, "step_000030")
    assert result.exit_code == 1
    assert result.stderr == "no window 'step_000030'. Did you mean 'step_000003'? There are: step_000003.\n"
    result = gradlab("profile", "show", profiled.id, "--rank", "3")
    assert result.stderr == "step_000003 has no summary of rank 3: No such file or directory.\n"


def test_show_takes_the_log_directory_of_a_loop(gradlab, profiled):
    assert gradlab("profile", "show", profiled.events).exit_code == 0


def test_show_refuses_a_summary_of_another_version(gradlab, profiled):
    path = profiled.events / "profile" / "step_000003" / "summary.json"
    path.write_text(json.dumps({"schema": 99}))
    result = gradlab("profile", "show", "@1")
    assert result.exit_code == 1
    assert result.stderr.endswith("has schema 99, and this gradlab reads 2: record the window again.\n")
    path.write_text("{")
    assert "is not JSON" in gradlab("profile", "show", "@1").stderr


def test_an_experiment_plans_windows_that_repeat_and_triggers(gradlab, experiment, the_run):
    plan = "profile={wait: 1, warmup: 0, active: 1, every: 5, max_share: 1.0, trigger: {slow_step: 500.0}}"
    assert gradlab("run", experiment, plan).exit_code == 0
    names = [path.name for path in windows_in(the_run().events / "profile")]
    assert names == ["step_000001", "step_000006", "step_000011"]
    assert "other windows: step_000001, step_000006" in gradlab("profile", "show").stdout
    wrong = gradlab("run", experiment, "profile={every: 2}")
    assert wrong.exit_code == 2 and "every=2 leaves no room for a window of 2 + 3 steps" in wrong.stderr


def test_without_windows_it_says_how_to_get_some(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "trainer.max_epochs=1").exit_code == 0
    result = gradlab("profile", "show")
    assert result.exit_code == 1
    assert (
        result.stderr.startswith("no profile windows in runs/mine/") and "`gradlab profile RUN` asks" in result.stderr
    )


def test_only_a_running_run_can_be_asked(gradlab, profiled):
    result = gradlab("profile", profiled.id)
    assert result.exit_code == 1
    assert result.stderr == (
        f"mine ({profiled.id}) is done; only a running run can be asked. `gradlab profile show {profiled.id}` shows "
        "the windows that it has.\n"
    )
    assert gradlab("profile", "nothing").exit_code == 2


def test_a_request_that_nobody_answers_is_taken_back(gradlab, tmp_path):
    result = gradlab("profile", tmp_path, "--patience", "0.1")
    assert result.exit_code == 1
    assert "no answer in 0.1 s. The run looks for requests after each training step" in result.stderr
    assert read_request(tmp_path / "profile") is None


def test_the_verdict_is_a_finding_of_the_run(gradlab, profiled):
    shown = gradlab("show", profiled.id).stdout
    assert "info GL801 since step 3: the profile of steps 3 to 4 is " in shown
    tags = {event.tag for file in event_files(profiled.events) for event in read_events(file)}
    assert {"perf/step_ms", "perf/data_ms", "perf/forward_ms", "perf/backward_ms", "perf/optimizer_ms"} <= tags


def test_a_window_on_a_finding_is_of_the_runs_own_profiler(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.nan_at=4", "diagnose.on_finding=profile")
    assert result.exit_code == 0, result.stderr
    (window,) = windows_in(the_run().events / "profile")
    reason = json.loads((window / "summary.json").read_text())["reason"]
    assert reason["kind"] == "finding" and "at step 4" in reason["detail"]


@pytest.mark.filterwarnings("default")
def test_a_run_too_short_for_its_window_says_so(gradlab, experiment):
    result = gradlab("run", experiment, "profile={wait: 100}", "trainer.max_epochs=1")
    assert result.exit_code == 0
    assert (
        "no profile was recorded: training ended after 5 steps, and the first window begins after 102" in result.stderr
    )


def test_running_out_of_memory_ends_the_run_with_who_asked_and_what_held_it(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.full_at=6")
    assert result.exit_code == 1
    run = the_run()
    folder = run.events / "oom_000006"
    weights, state = "232 bytes", "480 bytes"  # 58 parameters; two moments and a step count for each of four tensors
    sentence = (
        f"out of memory on cpu: the forward of Model asked for 2.5 GiB; held by optimizer state {state}, "
        f"parameters {weights}, gradients {weights}. The memory table is in {folder}."
    )
    assert f"{sentence.removesuffix(chr(46))}; the log is {run.log}" in result.stderr
    assert "OutOfMemoryError" in result.stderr  # with the user's own frames
    assert run.read_exit()["reason"] == sentence and run.status() == "failed"
    table = json.loads((folder / "oom.json").read_text())
    assert table["asked_bytes"] == int(2.5 * 2**30) and table["modules"]["net.0"] == 2 * 4 * (4 * 8 + 8)
    assert "Traceback" in run.log.read_text()


@pytest.mark.slow
def test_a_running_run_is_asked_and_answers(gradlab, experiment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-m", "gradlab", "run", experiment, "trainer.max_epochs=100000"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)
    try:
        for line in run.stderr:
            if "step" in line:
                break
        result = gradlab("profile", "@1", "--steps", "2", "--patience", "240")
        assert result.exit_code == 0, result.stderr
        assert "(demand)" in result.stdout.splitlines()[1] and "net.0" in result.stdout
    finally:
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=240)
    assert run.returncode == 75
