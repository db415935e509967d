"""The folder of a run: made exclusively, its state read off its contents."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gradlab.errors import MachineError, RunError, UsageError
from gradlab.runs.folder import RunFolder, new_id, read_json, write_json
from gradlab.runs.lock import locked


def test_a_folder_is_named_by_experiment_time_and_letters(tmp_path):
    run = RunFolder.create(tmp_path, "digits")
    assert run.path.parent == tmp_path / "digits"
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z]{4}", run.id)
    assert run.events.is_dir() and run.checkpoints.is_dir()


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    runs = {RunFolder.create(tmp_path, "digits").path for _ in range(50)}
    assert len(runs) == 50


def test_the_letters_do_not_come_from_the_seeded_generator(tmp_path):
    import random

    state = random.getstate()
    RunFolder.create(tmp_path, "digits")
    assert random.getstate() == state


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="the name of its folder"):
        RunFolder.create(tmp_path, name)


def test_a_root_that_cannot_be_written_is_the_machines_fault(tmp_path):
    (tmp_path / "runs").write_text("a file in the place of the folder")
    with pytest.raises(MachineError, match=r"cannot make a run folder in .*: Not a directory\. Choose .* --runs DIR"):
        RunFolder.create(tmp_path / "runs", "digits")


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, "done"), (1, "failed"), (2, "failed"), (3, "failed"), (75, "resumable"), (130, "interrupted")],
)
def test_the_exit_code_gives_the_status(tmp_path, code, status):
    run = RunFolder.create(tmp_path, "digits")
    run.write_exit(code=code, reason="because")
    assert run.status() == status


def test_a_run_without_an_exit_is_running_while_locked_and_lost_afterwards(tmp_path):
    run = RunFolder.create(tmp_path, "digits")
    with locked(run.lock):
        assert run.status() == "running"
    assert run.status() == "lost"


def test_the_lock_counts_attempts_and_exit_says_which(tmp_path):
    run = RunFolder.create(tmp_path, "digits")
    with locked(run.lock) as attempt:
        assert attempt == 1
        run.write_exit(code=75, reason="stopped")
    with locked(run.lock) as attempt:
        assert attempt == 2
        run.set_aside_exit()
        assert run.read_exit() is None
        run.write_exit(code=0, reason="done")
    assert run.read_exit()["attempt"] == 2
    assert json.loads((run.path / "exit-1.json").read_text())["code"] == 75


def test_a_resumed_run_that_is_killed_is_lost_and_not_what_it_was_before(tmp_path):
    run = RunFolder.create(tmp_path, "digits")
    with locked(run.lock):
        run.write_exit(code=75, reason="stopped")
    with locked(run.lock):
        run.set_aside_exit()
    assert run.status() == "lost"


def test_a_run_cannot_be_run_twice_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("gradlab.runs.lock._PATIENCE_SECONDS", 0.02)
    run = RunFolder.create(tmp_path, "digits")
    with locked(run.lock), pytest.raises(RunError, match="is being run by process"), locked(run.lock):
        pass


def test_a_killed_process_holds_no_lock(tmp_path):
    run = RunFolder.create(tmp_path, "digits")
    die_holding = (
        "import os, pathlib, signal, sys\n"
        "from gradlab.runs.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", die_holding, str(run.lock)]).returncode == -signal.SIGKILL
    assert run.status() == "lost"
    assert run.attempt() == 1


def test_json_is_replaced_in_one_step_and_leaves_nothing_behind(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_broken_json_reads_as_none(tmp_path):
    (tmp_path / "a.json").write_text('{"code": ')
    assert read_json(tmp_path / "a.json") is None


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Los_Angeles", "Europe/Berlin"])
def test_an_id_is_the_time_in_utc_wherever_it_is_made(zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        made = datetime.strptime(new_id()[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        assert abs(made - datetime.now(UTC)) < timedelta(minutes=1)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_run_folder_that_cannot_be_finished_is_not_left_behind(tmp_path, monkeypatch):
    def full(path, *args, **options):
        if path.name == "checkpoints":
            raise OSError(errno.ENOSPC, "No space left on device")
        return mkdir(path, *args, **options)

    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(MachineError, match="No space left on device"):
        RunFolder.create(tmp_path, "digits")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_there_are_no_locks_a_run_goes_on_and_says_so_once(tmp_path, no_locks):
    run, said = RunFolder.create(tmp_path, "digits"), []
    with locked(run.lock, said.append) as attempt:
        assert attempt == 1 and run.status() == "running"
        with pytest.raises(RunError, match="is being run by process"), locked(run.lock, said.append):
            pass
    assert said == [f"{run.path} is run without a lock, which its file system does not have (No locks available)."]
    assert run.status() == "lost"
    with locked(run.lock, said.append) as attempt:
        assert attempt == 2


def test_where_there_are_no_locks_another_process_or_host_of_that_id_is_not_the_runs(tmp_path, no_locks):
    run = RunFolder.create(tmp_path, "digits")
    with locked(run.lock, [].append):
        owner = json.loads(run.lock.read_text())
        assert run.status() == "running"
        for other in ({"process_started": "1"}, {"host": "elsewhere"}, {"pid": 2**22 + 1}, {"pid": 2**70}):
            run.lock.write_text(json.dumps(owner | other))
            assert run.status() == "lost"
        run.lock.write_text(json.dumps(owner))


SHIM = """
#include <errno.h>
int flock(int descriptor, int operation) { errno = %s; return -1; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to make a library with")
@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_kernel_without_locks_is_gone_on_with(tmp_path, name):
    (tmp_path / "shim.c").write_text(SHIM % name)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    hold = (
        "import pathlib, sys\nfrom gradlab.runs.lock import is_locked, locked\npath = pathlib.Path(sys.argv[1])\n"
        "with locked(path, print) as attempt: print(attempt, is_locked(path))\nprint(is_locked(path))"
    )
    environment = {**os.environ, "LD_PRELOAD": "shim.so", "LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-c", hold, str(tmp_path / "lock")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said, *rest = done.stdout.splitlines()
    assert said.startswith(f"{tmp_path} is run without a lock, which its file system does not have (")
    assert rest == ["1 True", "False"]
