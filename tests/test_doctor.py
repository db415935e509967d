"""`gradlab doctor` on this machine, and what each check says where something is wrong."""

import json
import shutil
from importlib import metadata

import pytest
from click.testing import CliRunner

from gradlab import doctor
from gradlab.cli.main import main
from gradlab.doctor import Result


def results(tmp_path):
    return {result.name: result for result in doctor.run_checks(tmp_path / "runs")}


def test_a_working_machine_has_no_failure_and_every_check_speaks(tmp_path):
    found = results(tmp_path)
    assert [result for result in found.values() if result.status == "fail"] == []
    assert list(found) == [
        "python", "torch", "pytorch-lightning", "tensorboard", "torch-tb-profiler", "devices", "training", "profiler",
        "plugins", "data server", "runs", "/dev/shm", "git",
    ]  # fmt: skip
    assert all(result.what for result in found.values())
    assert not (tmp_path / "runs").exists()


def call(*arguments):
    return CliRunner().invoke(main, ["doctor", *arguments])


@pytest.fixture
def checks(monkeypatch):
    def give(*results):
        monkeypatch.setattr(doctor, "run_checks", lambda root: iter(results))

    return give


def test_the_command_prints_a_line_a_check_with_the_fix(checks):
    checks(
        Result(name="torch", status="ok", what="2.13.0"),
        Result(name="git", status="warn", what="not found", fix="install git"),
    )
    result = call()
    assert result.exit_code == 0
    assert result.stdout == "✓ torch              2.13.0\n! git                not found. install git\n"


def test_a_failure_is_exit_code_3(checks):
    checks(Result(name="runs", status="fail", what="no space"))
    assert call().exit_code == 3


def test_json_has_the_same(checks):
    checks(Result(name="runs", status="fail", what="no space", fix="free some"))
    result = call("--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == [{"name": "runs", "status": "fail", "what": "no space", "fix": "free some"}]


def test_a_check_that_raises_is_a_failure_and_the_others_go_on(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("no such symbol")

    monkeypatch.setattr(doctor, "check_training", broken)
    found = results(tmp_path)
    assert found["training"] == Result(name="training", status="fail", what="RuntimeError: no such symbol")
    assert found["git"].status == "ok"


def test_a_missing_package_fails_with_the_command_that_installs_it(monkeypatch):
    known = metadata.version

    def version(name):
        if name == "torch-tb-profiler":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    result = doctor.check_package("torch-tb-profiler")
    assert (result.status, result.what, result.fix) == (
        "fail",
        "not installed",
        "pip install 'torch-tb-profiler>=0.4.3'",
    )


def test_a_version_out_of_range_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.4.0+cpu")
    result = doctor.check_package("torch")
    assert result.status == "warn"
    assert result.what.startswith("2.4.0+cpu, outside ")


def test_a_plugin_that_cannot_be_imported_would_stop_tensorboard(monkeypatch):
    broken = metadata.EntryPoint("odd", "gradlab_no_such_module:Plugin", "tensorboard_plugins")
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda group: [broken])
    result = doctor.check_plugins()
    assert result.status == "fail"
    assert "odd (No module named 'gradlab_no_such_module')" in result.what


def test_a_runs_folder_that_cannot_be_written_fails():
    result = doctor.check_runs(doctor.Path("/proc/runs"))
    assert result.status == "fail"
    assert "--runs DIR" in result.fix


def test_little_room_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    result = doctor.check_runs(tmp_path)
    assert result.status == "fail"
    assert result.fix == "checkpoints need room: free some"


def test_without_git_the_fix_is_named(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.check_git().status == "warn"


def test_a_driver_without_a_cuda_build_is_explained(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: "580.1")
    result = doctor.check_devices()
    assert result.status == "warn"
    assert result.what == "driver 580.1, but torch is built without CUDA"
