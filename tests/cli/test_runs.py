"""`gradlab runs` and `gradlab show`, on folders as runs leave them."""

import dataclasses
import json
import shlex
import time

import pytest

from gradlab.finding import Finding
from gradlab.launch.summary import Summary
from gradlab.runs.folder import RunFolder, write_json
from gradlab.runs.lock import locked
from gradlab.sinks import FindingsFile
from gradlab.summary.layer_table import Layer


@pytest.fixture(autouse=True)
def in_greenwich(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def run(tmp_path):
    """A run that has finished, in tmp_path/runs."""
    folder = RunFolder.create(tmp_path / "runs", "digits")
    write_json(folder.record, {"argv": ["gradlab", "run"], "git": None, "started": "2026-11-28T01:14:24.250+00:00"})
    folder.resolved.write_text("name: digits\n")
    folder.log.write_text("a warning\n")
    with locked(folder.lock):
        folder.write_exit(
            code=0, reason="done", steps=30, seconds=4.25, metrics={"val/loss": 0.25, "odd": float("nan")}
        )
    Summary(
        name="digits",
        run=folder.id,
        folder=str(folder.path),
        seconds=4.25,
        epochs=2,
        steps=30,
        metrics={"val/loss": 0.25},
        findings=(
            Finding(
                first_step=3, name="zero-gradient", sites=("b",), message="b has no gradient.", remedy="Is it used?"
            ),
            Finding(first_step=4, name="x", sites=("[c]",), message="[c] is odd.", severity="error"),
        ),
        answers={"slope": "2"},
        layers=(
            Layer(site="a.weight", shape=(64, 32), parameters=2048, gradient_norm=0.5, update_ratio=1e-3),
            Layer(site="a.bias", shape=(64,), parameters=64, gradient_norm=0.0, mark="zero gradient"),
        ),
    ).save(folder)
    return folder


def lines(result):
    return [line.split() for line in result.stdout.splitlines() if line.strip()]


def test_runs_are_listed_with_state_and_metrics(gradlab, run):
    result = gradlab("runs", "--runs", run.path.parents[1])
    assert result.exit_code == 0
    assert lines(result) == [
        ["run", "name", "started", "state", "steps", "took", "metrics"],
        [run.id, "digits", "2026-11-28", "01:14", "done", "30", "4.2", "s", "val/loss", "0.25"],
    ]


def test_runs_as_json_hold_no_nan(gradlab, run):
    result = gradlab("runs", "--json", "--runs", run.path.parents[1])
    (row,) = json.loads(result.stdout, parse_constant=pytest.fail)
    assert row["id"] == run.id
    assert row["state"] == "done"
    assert row["metrics"] == {"val/loss": 0.25, "odd": None}


def test_runs_can_be_chosen_by_state(gradlab, run):
    root = run.path.parents[1]
    assert run.id in gradlab("runs", "--state", "done", "--runs", root).stdout
    result = gradlab("runs", "--state", "failed", "--runs", root)
    assert (result.exit_code, result.stdout) == (0, f"no failed runs in {root}\n")


def test_the_place_of_runs_can_come_from_the_environment(gradlab, run, monkeypatch):
    monkeypatch.setenv("GRADLAB_RUNS", str(run.path.parents[1]))
    assert run.id in gradlab("runs").stdout


def test_show_repeats_the_closing_summary(gradlab, run):
    result = gradlab("show", "--runs", run.path.parents[1])
    assert result.exit_code == 0
    assert result.stdout == (
        f"digits  {run.id}  2026-11-28 01:14  done\n"
        f"\ndigits  {run.path}\n"
        "30 steps, 2 epochs in 4.2 s\n"
        "val/loss 0.25\n"
        "answer  value\n"
        "slope   2    \n"
        "layer     shape    parameters  gradient norm  update ratio               \n"
        "a.weight  64 x 32       2,048            0.5         0.001               \n"
        "a.bias    64               64              0                zero gradient\n"
        "error at step 4: [c] is odd.\n"
        "  x, exact; at [c]\n"
        "warning at step 3: b has no gradient. Is it used?\n"
        "  zero-gradient, exact; at b\n"
        "open it in TensorBoard with:\n"
        f"  gradlab board {shlex.quote(str(run.path))}\n"
    )


CAUSE = Finding(code="GL201", name="double-softmax", first_step=0, message="two softmaxes.", remedy="Drop one.")
SYMPTOM = Finding(
    code="GL402", name="flat", first_step=5, message="it is flat.", explained_by="GL201", certainty="scale-free"
)
NEWS = Finding(code="GL001", name="news", first_step=1, message="by the way.", severity="info")
FIELDS = "code name sites first_step last_step message evidence remedy severity certainty explained_by key"


def a_run(tmp_path, *states):
    """A run that was killed: its findings as they came, a line that was cut off, and no summary."""
    folder = RunFolder.create(tmp_path / "runs", "killed")
    write_json(folder.record, {"argv": []})
    sink = FindingsFile(folder.findings)
    for one in states:
        sink.finding(one, 0.0)
    sink.abstained({"GL303": "no weights are read yet"})
    sink.close()
    with folder.findings.open("a") as file:
        file.write('{"code": "GL')
    return folder


def test_findings_of_a_killed_run_are_json_with_causes_first(gradlab, tmp_path):
    unexplained = dataclasses.replace(SYMPTOM, explained_by=None)
    folder = a_run(tmp_path, NEWS, unexplained, CAUSE, SYMPTOM)
    found = json.loads(gradlab("show", folder.path, "--json").stdout)
    assert [(one["code"], one["explained_by"]) for one in found["findings"]] == [
        ("GL201", None),
        ("GL001", None),
        ("GL402", "GL201"),
    ]
    assert list(found["findings"][0]) == FIELDS.split()
    assert (found["state"], found["abstained"]) == ("lost", {"GL303": "no weights are read yet"})


def test_findings_can_be_read_while_the_run_goes_on(gradlab, tmp_path):
    folder = a_run(tmp_path, CAUSE)
    with locked(folder.lock):
        assert json.loads(gradlab("show", folder.path, "--json").stdout)["state"] == "running"
        printed = gradlab("show", folder.path).stdout.splitlines()
    assert printed[1:] == ["warning GL201 since step 0: two softmaxes. Drop one.", "  double-softmax, exact"]


def test_a_run_without_findings_has_an_empty_list(gradlab, run):
    bare = RunFolder.create(run.path.parents[1], "bare")
    write_json(bare.record, {"argv": []})
    found = json.loads(gradlab("show", bare.path, "--json").stdout)
    assert found["findings"] == [] and found["abstained"] == {}


def test_a_later_attempt_goes_on_in_the_same_file_after_a_line_that_was_cut_off(gradlab, tmp_path):
    folder = a_run(tmp_path, CAUSE)
    sink = FindingsFile(folder.findings, of="2-Critic")
    sink.finding(CAUSE, 0.0)
    sink.close()
    found = json.loads(gradlab("show", folder.path, "--json").stdout)["findings"]
    assert [one["key"] for one in found] == ["", "2-Critic"]


@pytest.mark.parametrize(
    ("option", "text"), [("--config", "name: digits\n"), ("--log", "a warning\n"), ("--record", '"argv"')]
)
def test_show_prints_a_file_of_the_run(gradlab, run, option, text):
    result = gradlab("show", "digits", option, "--runs", run.path.parents[1])
    assert result.exit_code == 0
    assert text in result.stdout


def test_show_of_a_file_that_is_not_there_says_so(gradlab, run):
    run.log.unlink()
    result = gradlab("show", "--log", "--runs", run.path.parents[1])
    assert result.exit_code == 1
    assert result.stderr == f"digits ({run.id}) has no log.txt: No such file or directory.\n"


def test_show_of_a_run_that_failed_says_why(gradlab, run):
    run.summary.unlink()
    run.write_exit(code=1, reason="RuntimeError: boom")
    result = gradlab("show", "--runs", run.path.parents[1])
    assert result.stdout == f"digits  {run.id}  2026-11-28 01:14  failed: RuntimeError: boom\n"


def test_an_unknown_run_is_refused_with_the_nearest(gradlab, run):
    root = run.path.parents[1]
    result = gradlab("show", "digit", "--runs", root)
    assert result.exit_code == 2
    assert result.stderr == f"no run 'digit' in {root}. Did you mean 'digits'?\n"
