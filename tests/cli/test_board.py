"""`gradlab board` in a process of its own: it prints an address that answers, and Ctrl-C leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from urllib.request import urlopen

import numpy as np
import pytest

from gradlab.cli.board import _jacobian_images
from gradlab.events import EventWriter
from gradlab.runs.folder import RunFolder


def make_run(root, name="digits", *, image=False):
    run = RunFolder.create(root, name)
    writer = EventWriter(run.events)
    writer.scalars({"train/loss": 0.5}, 0)
    if image:
        writer.image("jacobian/output__wrt__input", np.zeros((2, 3, 3), np.uint8), 0)
    writer.close()
    run.record.write_text("{}")
    return run


@contextlib.contextmanager
def _ended(process):
    """Whatever a test finds, its process does not outlive it."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_chosen_runs_until_it_is_stopped(tmp_path, number):
    chosen, _ = make_run(tmp_path / "runs", "digits"), make_run(tmp_path / "runs", "text")
    command = [sys.executable, "-m", "gradlab", "board", chosen.id, "--no-open", "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as board, _ended(board):
        assert board.stdout.readline() == "1 run; Ctrl-C stops\n"
        url = board.stdout.readline().strip()
        with urlopen(url.split("?")[0] + "data/runs", timeout=60) as answer:
            assert json.load(answer) == [f"digits/{chosen.id}"]
        board.send_signal(number)
        assert board.wait(60) == 0
        assert board.stderr.read() == ""
    assert list(tmp_path.glob("gradlab-board-*")) == []


def test_without_runs_it_says_so(gradlab, tmp_path):
    result = gradlab("board", "--runs", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path} holds no runs. Choose another place with --runs DIR.\n"


def test_an_unknown_run_is_refused(gradlab, tmp_path):
    make_run(tmp_path, "digits")
    result = gradlab("board", "digit", "--runs", tmp_path)
    assert result.exit_code == 2
    assert "Did you mean 'digits'?" in result.stderr


def test_the_jacobian_of_the_latest_run_is_found(tmp_path):
    without, with_image = make_run(tmp_path), make_run(tmp_path, image=True)
    assert _jacobian_images([with_image, without]) == [(f"digits/{with_image.id}", "jacobian/output__wrt__input")]
    assert _jacobian_images([without]) == []
