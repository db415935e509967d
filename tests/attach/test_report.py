"""Who gets which folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gradlab.attach.options import AttachOptions
from gradlab.attach.report import Report


@pytest.fixture
def options(tmp_path: Path) -> AttachOptions:
    """Those of a command."""
    run = str(tmp_path / "runs" / "train" / "x")
    return AttachOptions(command_pid=1, began=time.time(), command=("python", "train.py"), run=run)


def test_processes_that_have_nothing_to_do_with_each_other_have_folders_of_their_own(options: AttachOptions) -> None:
    first, second = Report(options, 0, 1), Report(options, 0, 1)
    assert first.claim() == Path(options.run) / "tb"
    folder = second.claim()
    assert folder is not None and folder.parent == first.claim() and folder.name.startswith("process-")
    assert first.run is not None and second.run is None
    second.discard()
    assert Path(options.run).is_dir()
    first.discard()
    assert not Path(options.run).exists()


def test_another_rank_joins_a_folder_that_need_not_be_there_yet(
    options: AttachOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    report = Report(options, 1, 2)
    assert report.claim() == Path(options.run) / "tb"
    report.note_own_failure(code=1, reason="it failed")
    assert not Path(options.run).exists() and report.run is None


def test_a_rank_of_another_node_that_is_told_nothing_has_no_folder(
    options: AttachOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert Report(options, 1, 2).claim() is None


def test_a_rank_zero_that_is_started_again_goes_on_with_its_run(
    options: AttachOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Report(options, 0, 2)
    before.claim()
    before.close([], code=1, reason="it failed")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = Report(options, 0, 2)
    again.claim()
    assert again.run is not None and again.run.status() == "running"
    again.close([], code=0, reason="done")
    assert (again.run.status(), again.run.attempt()) == ("done", 2)
    assert (again.run.path / "exit-1.json").is_file()
