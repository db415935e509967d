"""Which rank of a run failed first, and that it is written down while rank zero waits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradlab.launch.rank_failures import RankFailureWatch, first_failure, note_failure
from gradlab.runs.folder import RunFolder, write_json


def ended(code: int | None) -> SimpleNamespace:
    """A process that has ended with a code, or has not ended."""
    return SimpleNamespace(poll=lambda: code)


def test_the_earliest_note_counts_and_old_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    folder, began = RunFolder(tmp_path), time.time()
    write_json(tmp_path / "exit-rank1.json", {"rank": 1, "code": 5, "reason": "an old one", "at": began - 10})
    assert first_failure(folder, since=began, patience=False) is None
    note_failure(folder, code=1, reason="late")
    write_json(tmp_path / "exit-rank2.json", {"rank": 2, "code": 3, "reason": "early", "at": began})
    found = first_failure(folder, since=began, patience=True)
    assert found is not None and (found.rank, found.code, found.reason) == (2, 3, "early")


@pytest.mark.parametrize(
    ("code", "expected", "reason"), [(9, 9, "left with exit code 9"), (-9, 137, "killed by signal 9")]
)
def test_a_rank_without_a_note_is_known_by_its_process(tmp_path: Path, code: int, expected: int, reason: str) -> None:
    processes = [ended(None), ended(0), ended(code)]
    found = first_failure(RunFolder(tmp_path), processes, since=time.time(), patience=False)
    assert found is not None and (found.rank, found.code, found.reason) == (3, expected, reason)


def wait_for_exit(folder: RunFolder) -> dict[str, object]:
    """What is written ahead of the end, once it is there."""
    deadline = time.monotonic() + 120
    while (left := folder.read_exit()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left is not None
    return left


def test_a_failure_is_written_down_while_rank_zero_waits(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    processes: list[SimpleNamespace] = []
    with RankFailureWatch(folder, lambda: processes, since=time.time()):
        assert folder.read_exit() is None
        processes.append(ended(9))
        left = wait_for_exit(folder)
    assert (left["code"], left["reason"]) == (9, f"rank 1 failed, left with exit code 9 ({tmp_path}/log-rank1.txt)")


def test_a_signal_is_written_down_before_anybody_handles_it(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with RankFailureWatch(RunFolder(tmp_path), list, since=time.time()):
            os.kill(os.getpid(), signal.SIGTERM)
            left = wait_for_exit(RunFolder(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left["code"] == 1 and str(left["reason"]).startswith("SIGTERM came")
    assert signal.set_wakeup_fd(-1) == -1
