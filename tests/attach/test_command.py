"""What `gradlab attach` refuses, before any script runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradlab import JacobianSlice, Profile, Tap, Trigger
from gradlab.attach.bootstrap import _TorchFinder
from gradlab.attach.command import SITE, command_of, environment_of, why_not_followed
from gradlab.attach.options import AttachOptions, parse_tap
from gradlab.cli.attach import _name
from gradlab.cli.main import main


@pytest.fixture
def attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Call `gradlab attach` in a folder with a script `train.py`; nothing is ever run."""
    (tmp_path / "train.py").write_text("print('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("the script was run"))

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["attach", *arguments])

    return call


def options(**more) -> AttachOptions:
    """Some options."""
    return AttachOptions(command_pid=1, began=2.0, command=("python", "train.py"), run="/runs/train/x", **more)


def test_a_script_that_is_not_there_is_refused_with_the_nearest(attach) -> None:
    result = attach("trian.py", "--epochs", "3")
    assert result.exit_code == 2
    assert result.stderr == "there is no script and no program 'trian.py'. Did you mean 'train.py'?\n"


def test_a_name_that_nothing_resembles_brings_up_modules(attach) -> None:
    result = attach("package.train")
    assert result.exit_code == 2
    assert result.stderr == (
        "there is no script and no program 'package.train'. "
        "A module is run with -m, `gradlab attach -m package.train`.\n"
    )


def test_a_tap_of_an_unknown_quantity_is_refused(attach) -> None:
    result = attach("--taps", "*=outptu", "train.py")
    assert result.exit_code == 2
    assert "--taps '*=outptu': " in result.stderr and "Did you mean 'output'" in result.stderr


def test_a_file_with_problems_shows_all_of_them_in_place(attach, tmp_path: Path) -> None:
    (tmp_path / "watch.yaml").write_text("tap: []\nprofile: {active: 0}\n")
    result = attach("--config", "watch.yaml", "train.py")
    assert result.exit_code == 2
    assert "watch.yaml:1:1: the file has no setting 'tap'. Did you mean 'taps'?" in result.stderr
    assert "watch.yaml:2:" in result.stderr and "active" in result.stderr


def test_a_file_that_is_not_there_is_refused(attach) -> None:
    result = attach("--config", "no.yaml", "train.py")
    assert result.exit_code == 2 and "there is no such file" in result.stderr


def test_every_does_not_reach_into_a_file(attach, tmp_path: Path) -> None:
    (tmp_path / "watch.yaml").write_text("taps: [{at: '*', of: weight_grad}]\n")
    result = attach("--config", "watch.yaml", "--every", "2", "train.py")
    assert result.exit_code == 2 and "those of a file have their own `every`" in result.stderr


def test_options_survive_the_way_through_the_environment() -> None:
    given = options(
        taps=(Tap(["a", "!b"], of=["output", "weight"], stats=("norm", "zeros"), every=3), Tap("c", of="update")),
        jacobians=(JacobianSlice(of="output", wrt="input", rows=2),),
        profile=Profile(active=4, trigger=Trigger(slow_step=3.0)),
    )
    again = AttachOptions.from_text(given.to_text())
    assert again.to_text() == given.to_text()
    assert again.profile == given.profile
    assert again.taps[0].statistics == ("norm", "zeros") and again.taps[1].statistics == ("norm",)


def test_a_tap_of_the_command_line_says_where_what_and_which_statistics() -> None:
    tap = parse_tap("enc.*,!enc.0=output,output_grad:norm,zeros", 5)
    assert (tap.patterns, tap.quantities, tap.statistics, tap.every) == (
        ("enc.*", "!enc.0"),
        ("output", "output_grad"),
        ("norm", "zeros"),
        5,
    )
    assert parse_tap("*", 1).quantities == ("weight_grad",)


def test_programs_are_run_as_they_are_and_scripts_by_this_python(tmp_path: Path) -> None:
    shell, script = tmp_path / "launch", tmp_path / "train"
    shell.write_text("#!/bin/sh\n")
    shell.chmod(0o755)
    script.write_text("print()")
    assert command_of(str(shell), ["-x"], is_module=False) == [str(shell), "-x"]
    assert command_of(str(script), ["-x"], is_module=False)[-2:] == [str(script), "-x"]
    assert command_of(str(script), [], is_module=False)[0] == sys.executable
    assert command_of("a.b", ["-m"], is_module=True)[-3:] == ["-m", "a.b", "-m"]


def test_the_environment_keeps_what_was_there() -> None:
    found = environment_of(options(), {"PYTHONPATH": "/mine", "HOME": "/root"})
    assert found["PYTHONPATH"] == f"{SITE}:/mine" and found["HOME"] == "/root"
    assert environment_of(options(), {})["PYTHONPATH"] == str(SITE)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["/usr/bin/python3.11", "-I", "train.py"], "I"),
        (["python", "-u", "-BS", "train.py"], "S"),
        (["python3", "-Wignore", "-X", "importtime", "-E", "-m", "train"], "E"),
        (["python3", "train.py", "-I"], ""),
        (["python3", "-WImportWarning", "-m", "train", "-S"], ""),
        (["torchrun", "-I"], ""),
    ],
)
def test_a_python_that_does_not_look_for_us_is_noticed(command: list[str], flag: str) -> None:
    said = why_not_followed(command)
    expected = f"nothing is watched: python -{flag} imports no sitecustomize.py of others, which gradlab is."
    assert said == (expected if flag else "")


def test_who_only_asks_whether_torch_is_there_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = _TorchFinder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    spec = finder.find_spec("torch")
    assert spec is not None and finder in sys.meta_path
    assert finder.find_spec("numpy") is None


@pytest.mark.parametrize(
    "script, arguments, name",
    [
        ("lab/train.py", ["other.py"], "train"),
        ("torchrun", ["--nproc-per-node", "2", "lab/train.py", "x.py"], "train"),
        ("accelerate", ["launch", "train.py"], "train"),
        ("torchrun", ["-m", "package.train"], "torchrun"),
    ],
)
def test_runs_have_the_name_of_the_script(script: str, arguments: list[str], name: str) -> None:
    assert _name(script, arguments) == name
