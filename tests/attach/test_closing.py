"""What the command's own process says and writes once all that it has started has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradlab.attach.closing import close_command
from gradlab.attach.exit_hooks import failed_rank
from gradlab.attach.options import AttachOptions
from gradlab.attach.rendezvous import note_file
from gradlab.launch.rank_failures import Failure, note_failure
from gradlab.runs.folder import RunFolder


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttachOptions:
    """Those of a command whose process is a launcher."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = str(tmp_path / "runs" / "train" / "x")
    return AttachOptions(command_pid=1, began=time.time() - 5, command=("torchrun", "train.py"), run=run)


@pytest.fixture
def run(options: AttachOptions) -> RunFolder:
    """The folder of its run."""
    folder = RunFolder(Path(options.run))
    folder.path.mkdir(parents=True)
    return folder


def close(options: AttachOptions, *, code: int = 1, failure: Failure | None = None) -> None:
    close_command(options, code=code, reason="ChildFailedError", nothing="there was nothing.", failure=failure)


KILLED = Failure.of_process(2, -9)


def test_a_rank_that_left_word_before_rank_zero_ended_is_the_cause(options: AttachOptions, run: RunFolder) -> None:
    note_failure(run, code=4, reason="ValueError: mine")
    run.write_exit(code=1, reason="lost a connection", steps=3)
    close(options)
    assert run.read_exit() == {"code": 1, "reason": "rank 1 failed, ValueError: mine", "attempt": 0, "steps": 3}


def test_a_rank_that_failed_because_rank_zero_had_is_not_blamed(options: AttachOptions, run: RunFolder) -> None:
    run.write_exit(code=1, reason="ValueError: mine")
    os.utime(run.exit, (options.began + 1, options.began + 1))
    note_failure(run, code=1, reason="lost a connection")
    close(options)
    assert run.read_exit() == {"code": 1, "reason": "ValueError: mine", "attempt": 0}


def test_of_a_rank_zero_that_was_killed_the_launcher_writes_the_end(options: AttachOptions, run: RunFolder) -> None:
    close(options, failure=KILLED)
    assert run.read_exit() == {"code": 1, "reason": "rank 2 failed, killed by signal 9", "attempt": 0}


def test_nobody_is_blamed_for_what_went_well(options: AttachOptions, run: RunFolder) -> None:
    run.write_exit(code=0, reason="done")
    close(options, code=0)
    assert run.read_exit() == {"code": 0, "reason": "done", "attempt": 0}


def test_results_on_another_node_are_told_once(
    options: AttachOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note_file(options).write_text("first:/runs/train/y")
    close(options, code=0)
    close(options, code=0)
    assert capsys.readouterr().err == (
        "gradlab: the results are with those of rank zero, first:/runs/train/y\n"
        "gradlab: nothing was watched: there was nothing.\n"
    )
    assert not list(tmp_path.glob("gradlab-attach-*"))


def test_of_several_failures_the_rank_that_a_signal_killed_is_the_cause() -> None:
    class ChildFailedError(Exception):
        """As torchrun's."""

        def __init__(self, codes: dict[int, int]) -> None:
            process = type("ProcessFailure", (), {"timestamp": 7})
            self.failures = {rank: process() for rank in codes}
            for rank, code in codes.items():
                self.failures[rank].exitcode = code

    def blamed(codes: dict[int, int]) -> tuple[int, str]:
        found = failed_rank(ChildFailedError(codes))
        assert found is not None
        return found.rank, found.reason

    assert blamed({0: 1, 1: -9, 2: -15}) == (1, "killed by signal 9")
    assert blamed({1: 3, 0: 1}) == (0, "left with exit code 1")
    assert failed_rank(ValueError("other")) is None


def test_the_last_line_needs_no_torch():
    code = "import sys, gradlab.attach.closing; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
