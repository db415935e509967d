"""Where a run's modules and files are looked for: while it trains, in workers, and when it is resumed elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradlab.runs.find import all_runs

LATE = """
import multiprocessing.spawn
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, fail_at=None, file=None):
        super().__init__()
        self.layer, self.fail_at, self.file = torch.nn.Linear(4, 2), fail_at, file

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        import imported_late
        seen.update(imported_late.WHERE)
        paths.append(multiprocessing.spawn.get_preparation_data("worker")["sys_path"][0])
        if self.file:
            open(self.file).close()
        if self.global_step == self.fail_at:
            raise ArithmeticError
        return self(batch[0]).sum()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 4)), 4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

seen, paths = set(), []
"""
TRAINER = "trainer: {max_epochs: 2, accelerator: cpu, enable_checkpointing: null}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(name, module=...)`: an experiment in a folder of its own, with modules beside it; runs go to ./runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADLAB_RUNS", raising=False)
    before = set(sys.modules)

    def project(name, module="late_net"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{module}.py").write_text(LATE)
        (folder / "imported_late.py").write_text(f"WHERE = [{name!r}]\n")
        file = folder / "mine.yaml"
        file.write_text(f"name: {name}\nmodel: {{class_path: {module}.Net, init_args: {{}}}}\n{TRAINER}")
        return file

    yield project
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("late_net", "imported_late", "trace", "sunau", "plain"):
            del sys.modules[name]


def let_go_on(run):
    run.resolved.write_text(run.resolved.read_text().replace("fail_at: 1", "fail_at: 100"))


def test_modules_beside_the_experiment_can_be_imported_as_long_as_it_trains(gradlab, project, monkeypatch):
    before = list(sys.path)
    for name in ("a", "b"):
        file = project(name)
        assert gradlab("check", file).exit_code == 0
        result = gradlab("run", file)
        assert result.exit_code == 0, result.stderr
        net = sys.modules["late_net"]
        assert net.seen == {name}
        assert set(net.paths) == {str(file.parent)}  # what a worker that is spawned gets
    assert sys.path == before


def test_modules_are_found_again_when_the_run_is_resumed_and_measured(gradlab, project, monkeypatch, tmp_path):
    file = project("a")
    assert gradlab("run", file, "model.init_args.fail_at=1").exit_code == 1
    (run,) = all_runs(Path("runs"))
    let_go_on(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    root = tmp_path / "runs"
    for name in ("late_net", "imported_late"):
        del sys.modules[name]
    result = gradlab("run", "--resume", run.id, "--runs", root)
    assert result.exit_code == 0, result.stderr
    assert sys.modules["late_net"].seen == {"a"}
    result = gradlab("jacobian", run.id, "--runs", root, "--spectrum-only")
    assert result.exit_code == 0, result.stderr


@pytest.mark.skipif("trace" in sys.modules, reason="something has imported Python's own trace")
def test_a_module_named_as_one_of_pythons_own_is_found_when_the_run_is_resumed(gradlab, project):
    file = project("a", module="trace")
    assert gradlab("run", file, "model.init_args.fail_at=1").exit_code == 1
    (run,) = all_runs(Path("runs"))
    let_go_on(run)
    del sys.modules["trace"]
    result = gradlab("run", "--resume", run.id)
    assert result.exit_code == 0, result.stderr


def test_a_module_that_is_hidden_by_one_of_pythons_own_says_which_was_found(gradlab, project):
    file = project("a", module="types")
    result = gradlab("run", file)
    assert result.exit_code == 2
    import types

    assert (
        f"types has no 'Net'. The module types that was found is {types.__file__}, not types.py beside the experiment: "
        "rename that one."
    ) in result.stderr.replace("Did you mean 'new_class'? ", "")
    file.write_text(file.read_text().replace("types.Net", "math.Net"))
    assert "math has no 'Net'" in gradlab("run", file).stderr
    file.write_text(file.read_text().replace("math.Net", "types.SimpleNamespace"))
    assert "types.SimpleNamespace is no LightningModule." in (said := gradlab("check", file).stderr)
    assert "not types.py beside the experiment" in said


def test_a_package_without_init_is_not_that_of_the_experiment_before(gradlab, project):
    for name in ("a", "b"):
        file = project(name)
        package = file.parent / "plain"
        package.mkdir()
        (file.parent / "late_net.py").rename(package / "net.py")
        file.write_text(file.read_text().replace("late_net.Net", "plain.net.Net"))
        assert gradlab("run", file).exit_code == 0
        assert sys.modules["plain.net"].seen == {name}


def test_a_linked_experiment_has_its_modules_beside_the_link(gradlab, project, tmp_path):
    file = project("a")
    (tmp_path / "shared").mkdir()
    file.rename(tmp_path / "shared" / "mine.yaml")
    file.symlink_to(tmp_path / "shared" / "mine.yaml")
    assert gradlab("run", file, "model.init_args.fail_at=1").exit_code == 1
    (run,) = all_runs(Path("runs"))
    let_go_on(run)
    del sys.modules["late_net"], sys.modules["imported_late"]
    assert gradlab("run", "--resume", run.id).exit_code == 0


def test_folders_that_came_first_when_the_run_began_come_first_again(gradlab, project, monkeypatch, tmp_path):
    file = project("a")
    (tmp_path / "library").mkdir()
    (file.parent / "imported_late.py").rename(tmp_path / "library" / "imported_late.py")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "library"))
        assert gradlab("run", file, "model.init_args.fail_at=1").exit_code == 1
    (run,) = all_runs(Path("runs"))
    assert str(tmp_path / "library") in json.loads(run.record.read_text())["imports"]
    let_go_on(run)
    del sys.modules["imported_late"]
    assert gradlab("run", "--resume", run.id).exit_code == 0


def test_a_folder_of_modules_that_is_gone_is_named(gradlab, project, tmp_path):
    file = project("a")
    assert gradlab("run", file, "model.init_args.fail_at=1").exit_code == 1
    file.parent.rename(tmp_path / "renamed")
    del sys.modules["late_net"]
    result = gradlab("run", "--resume", "@1")
    assert result.exit_code == 2
    assert f"The experiment's folder, {file.parent}, is not there any more." in result.stderr


def test_a_relative_path_names_the_folder_of_the_first_run(gradlab, project, monkeypatch, tmp_path):
    file = project("a")
    Path("rows.txt").write_text("1\n")
    assert gradlab("run", file, "model.init_args.fail_at=1", "model.init_args.file=rows.txt").exit_code == 1
    (run,) = all_runs(Path("runs"))
    let_go_on(run)
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    result = gradlab("run", "--resume", run.id, "--runs", tmp_path / "runs")
    assert result.exit_code == 1
    assert (
        f"warning: the run began in {tmp_path}, where model.init_args.file names 'rows.txt'; from here that is "
        f"{here}/rows.txt, which does not exist. Resume it there to read the same files.\n"
    ) in result.stderr
    assert f"The run began in {tmp_path}; a relative path means another file here. Resume it there." in result.stderr
    monkeypatch.chdir(tmp_path)
    result = gradlab("run", "--resume", run.id)
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr


@pytest.mark.slow
def test_a_dataset_beside_the_experiment_is_found_by_workers_that_are_spawned(project):
    file = project("a")
    (file.parent / "rows.py").write_text(
        "import torch\nclass Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 8\n    def __getitem__(self, index): return (torch.ones(4),)\n"
    )
    net = file.parent / "late_net.py"
    spawned = "from rows import Rows; return DataLoader(Rows(), 4, num_workers=1, multiprocessing_context='spawn')"
    net.write_text(net.read_text().replace("return DataLoader(TensorDataset(torch.ones(8, 4)), 4)", spawned))
    file.write_text(file.read_text().replace("max_epochs: 2", "max_epochs: 1"))
    command = [str(Path(sys.executable).with_name("gradlab")), "run", "a/mine.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
