"""A run whose folder is taken away, or takes no more, while it trains: one warning, all its steps, exit code 1."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from gradlab.events import EventWriter
from gradlab.launch.folder_watch import FolderWatch
from gradlab.runs.folder import RunFolder


@pytest.fixture
def run_with(gradlab, experiment, monkeypatch):
    """`run_with(action)`: a run of three epochs of which the second begins with `action(folder)`."""

    def run_with(action):
        epochs = []

        def on_train_epoch_start(self, trainer, pl_module):
            epochs.append(trainer.current_epoch)
            if trainer.current_epoch == 1:
                action(self.folder)

        monkeypatch.setattr(FolderWatch, "on_train_epoch_start", on_train_epoch_start)
        result = gradlab("run", experiment)
        assert epochs == [0, 1, 2] and "15 steps, 3 epochs" in result.stdout
        assert result.exit_code == 1
        return result

    return run_with


def warnings_of(result):
    return [line for line in result.stderr.splitlines() if line.startswith("warning:")]


def run_of(result):
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("run ")]
    return RunFolder(Path(line.removeprefix("run ")))


@pytest.mark.parametrize("action", [lambda run: shutil.rmtree(run.path), lambda run: run.path.rename("moved")])
def test_a_run_folder_that_is_gone_is_told_once_and_at_the_end(run_with, action):
    result = run_with(action)
    run = run_of(result)
    problem = f"the run folder {run.path} was deleted or moved while the run trained"
    assert warnings_of(result) == [f"warning: {problem}; training goes on, and the run will end with exit code 1"]
    assert result.stderr.splitlines()[-1] == f"trained to the end, but {problem}"
    assert not run.path.exists()  # and is not made anew


@pytest.mark.parametrize("name", ["tb", "metrics.jsonl"])
def test_a_part_of_the_folder_that_is_deleted_is_named(run_with, name):
    def delete(run):
        target = run.path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    result = run_with(delete)
    run = run_of(result)
    (warning,) = warnings_of(result)
    assert warning.startswith(f"warning: {run.path / name}") and "was deleted or moved" in warning
    assert (run.status(), run.read_exit()["code"], run.read_exit()["steps"]) == ("failed", 1, 15)
    assert run.read_exit()["reason"].startswith(f"trained to the end, but {run.path / name}")


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(run_with, monkeypatch, number):
    def fill_up(run):
        monkeypatch.setattr("pytorch_lightning.Trainer.save_checkpoint", failing(number))

    result = run_with(fill_up)
    run = run_of(result)
    words = os.strerror(number)
    problem = f"the checkpoint {run.last_checkpoint} could not be written: {words[:1].lower()}{words[1:]}"
    assert warnings_of(result) == [f"warning: {problem}; training goes on, and the run will end with exit code 1"]
    assert run.read_exit()["reason"] == f"trained to the end, but {problem}"


@pytest.mark.filterwarnings("default::gradlab.errors.GradlabWarning", "default:the logger was switched off")
def test_a_full_disk_for_what_is_measured_is_said_at_the_end(run_with, monkeypatch):
    def fill_up(run):
        monkeypatch.setattr("gradlab.events.output_file.OutputFile.flush", flush)

    def flush(self):
        self._let_go()
        from gradlab.errors import EventError

        raise EventError(f"cannot write to {self.path}: no space left on device.")

    result = run_with(fill_up)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("trained to the end, but ") and "could not be written" in last
    assert all("was switched off" in line for line in warnings_of(result))


def test_a_summary_and_an_end_that_cannot_be_written_are_told(run_with, monkeypatch):
    def fill_up(run):
        monkeypatch.setattr("gradlab.launch.summary.write_json", failing(errno.ENOSPC))
        monkeypatch.setattr("gradlab.runs.folder.write_json", failing(errno.ENOSPC))

    result = run_with(fill_up)
    run = run_of(result)
    (warning,) = warnings_of(result)
    assert warning.startswith(f"warning: {run.summary} could not be written: no space left on device")
    assert run.status() == "lost"


def test_a_run_that_cannot_begin_leaves_no_folder(gradlab, experiment, monkeypatch):
    monkeypatch.setattr("gradlab.launch.run.write_record", failing(errno.ENOSPC))
    result = gradlab("run", experiment)
    assert result.exit_code == 3
    assert result.stderr.startswith("No space left on device. Free some space")
    assert not list(Path("runs").iterdir())


def test_a_file_that_nobody_has_touched_is_in_order(tmp_path):
    run, said = RunFolder.create(tmp_path, "x"), []
    watch = FolderWatch(run, said.append)
    writer = EventWriter(run.events)
    watch.follow(writer.path, lambda: writer.closed)
    assert watch.look() and not watch.is_gone and not said
    writer.close()
