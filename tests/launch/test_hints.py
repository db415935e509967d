"""Suggested commands work in the shell and the folder in which they are read."""

import sys

import pytest

from gradlab.launch import hints

RUN = "digits/20261101-080000-abcd"
program = hints.program


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADLAB_RUNS", raising=False)
    monkeypatch.setattr(hints, "program", lambda: "gradlab")  # as in a shell that finds it
    return tmp_path


def test_a_run_in_the_usual_place_is_named_by_its_id(here):
    assert hints.hint("board", f"runs/{RUN}") == "gradlab board 20261101-080000-abcd"
    assert hints.hint("run --resume", here / "runs" / RUN) == "gradlab run --resume 20261101-080000-abcd"


def test_a_run_elsewhere_is_named_by_its_path(here):
    assert hints.hint("board", f"my runs/{RUN}") == f"gradlab board 'my runs/{RUN}'"


def test_the_usual_place_can_come_from_the_environment(here, monkeypatch):
    monkeypatch.setenv("GRADLAB_RUNS", str(here / "elsewhere"))
    assert hints.hint("board", here / "elsewhere" / RUN) == "gradlab board 20261101-080000-abcd"


def test_a_gradlab_that_is_not_on_the_path_is_called_where_it_is(here, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    monkeypatch.setattr(sys, "argv", [str(here / ".venv/bin/gradlab")])
    assert program() == ".venv/bin/gradlab"
    monkeypatch.setattr(sys, "argv", ["/somewhere/gradlab/__main__.py"])
    assert program() == f"{sys.executable} -m gradlab"
