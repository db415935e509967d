"""What a run records of itself, with and without git, and what it must never record."""

import json
import subprocess

import pytest

from gradlab.runs import record as record_module
from gradlab.runs.folder import RunFolder
from gradlab.runs.record import append_attempt, describe, git_state, uncommitted_patch, write_record


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-b", "trunk")
    (folder / "model.py").write_text("depth = 2\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "begin")
    return folder


def test_a_clean_repository_is_its_commit_and_branch(repository):
    state = git_state(repository)
    assert len(state["sha"]) == 40
    assert (state["branch"], state["dirty"], state["untracked"]) == ("trunk", False, [])


def test_uncommitted_changes_are_kept_as_a_patch_that_applies(repository, tmp_path):
    (repository / "model.py").write_text("depth = 3\n")
    (repository / "new.py").write_text("pass\n")
    run = RunFolder.create(tmp_path, "digits")
    described = describe(["gradlab", "run"], seed=7, folder=repository)
    write_record(run, described, repository=repository)
    saved = json.loads(run.record.read_text())
    assert saved["git"]["dirty"] is True
    assert saved["git"]["untracked"] == ["new.py"]
    assert saved["git"]["patch"] == "uncommitted.patch"
    git(repository, "checkout", "model.py")
    git(repository, "apply", str(run.patch))
    assert (repository / "model.py").read_text() == "depth = 3\n"


def test_a_patch_beyond_the_limit_is_left_out_and_says_so(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "PATCH_LIMIT_BYTES", 10)
    (repository / "model.py").write_text("depth = 3\n")
    run = RunFolder.create(tmp_path, "digits")
    write_record(run, describe([], seed=0, folder=repository), repository=repository)
    assert not run.patch.exists()
    assert json.loads(run.record.read_text())["git"]["patch"].startswith("left out: ")


def test_outside_git_and_without_git_there_is_no_git_state(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert uncommitted_patch(tmp_path) == b""


def test_a_record_holds_what_is_needed_and_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "sesame-open")
    run = RunFolder.create(tmp_path, "digits")
    write_record(run, describe(["gradlab", "run", "a.yaml"], seed=7, folder=tmp_path), repository=tmp_path)
    text = run.record.read_text()
    saved = json.loads(text)
    assert saved["argv"] == ["gradlab", "run", "a.yaml"]
    assert saved["seed"] == 7
    assert saved["git"] is None
    assert {"python", "gradlab", "torch", "pytorch-lightning", "tensorboard", "cuda"} <= set(saved["versions"])
    assert "sesame-open" not in text and "SOME_TOKEN" not in text


def test_a_resumed_run_keeps_the_record_of_every_attempt(tmp_path):
    run = RunFolder.create(tmp_path, "digits")
    write_record(run, describe(["first"], seed=7, folder=tmp_path), repository=tmp_path)
    append_attempt(run, describe(["second"], seed=7, folder=tmp_path))
    append_attempt(run, describe(["third"], seed=7, folder=tmp_path))
    saved = json.loads(run.record.read_text())
    assert saved["argv"] == ["first"]
    assert [later["argv"] for later in saved["resumed"]] == [["second"], ["third"]]
