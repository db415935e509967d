"""`gradlab run` in several processes, on gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import free_port

from gradlab.events.reader import read_events
from gradlab.runs.find import all_runs
from gradlab.runs.folder import RunFolder

pytestmark = pytest.mark.slow

CODE = """
import os, time
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Model(pl.LightningModule):
    def __init__(self, how: str = ""):
        super().__init__()
        width = 9 if how == "other" and os.environ.get("LOCAL_RANK") == "1" else 8
        self.net, self.how = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)), how

    def training_step(self, batch, i):
        if self.global_step == 2 and self.global_rank == 1:
            if self.how == "raise":
                raise ArithmeticError("rank one")
            if self.how in ("leave", "hang"):
                os._exit(9)
        if self.global_step == 2 and self.global_rank == 0 and self.how == "hang":
            time.sleep(120)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        g = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(40, 4, generator=g), torch.randint(0, 2, (40,), generator=g))
        return DataLoader(data, batch_size=40 // int(os.environ.get("PIECES", 1)))
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Five steps on the whole data."""
    (tmp_path / "ranks_module.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nmodel: {class_path: ranks_module.Model}\ndata: {class_path: ranks_module.Data}\n"
        "trainer: {max_epochs: 5, accelerator: cpu}\n"
    )
    return tmp_path


def start(folder: Path, *arguments: str, pieces: int = 2) -> subprocess.Popen[str]:
    """A Python command in the folder."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PIECES": str(pieces)}
    command = [sys.executable, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command."""
    try:
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def call(folder: Path, *arguments: str, pieces: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a Python command in the folder to its end."""
    return end(start(folder, *arguments, pieces=pieces))


def the_run(folder: Path) -> RunFolder:
    (run,) = all_runs(folder / "runs")
    return run


def norms(folder: Path) -> list[float]:
    """The global gradient norm of every step, of the one event file that there is."""
    (file,) = the_run(folder).events.glob("events.out.*")
    return [float(v.value) for v in read_events(file) if v.tag == "gradlab/global/weight_grad.norm"]


def test_under_torchrun_it_is_one_run_with_the_numbers_of_one_process(experiment: Path, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = call(experiment, *torchrun, "-m", "gradlab", "run", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" board ") == 1
    run = the_run(experiment)
    assert (run.path / "log-rank1.txt").is_file() and run.read_exit()["steps"] == 5
    found = norms(experiment)
    run.path.rename(tmp_path / "aside")
    alone = call(experiment, "-m", "gradlab", "run", "mine.yaml", pieces=1)
    assert alone.returncode == 0, alone.stderr
    assert found == pytest.approx(norms(experiment), rel=1e-5)


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("raise", 1, "rank 1 failed, ArithmeticError: rank one"),
        ("leave", 9, "rank 1 failed, left with exit code 9"),
        ("other", 1, "rank 1 failed, RuntimeError: [1]: params[0] in this process with sizes [9, 4]"),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed_first(
    experiment: Path, how: str, code: int, reason: str
) -> None:
    options = ["trainer.devices=2", "trainer.strategy=ddp", f"model.init_args.how={how}"]
    done = call(experiment, "-m", "gradlab", "run", "mine.yaml", *options)
    assert done.returncode == code, done.stderr
    left = json.loads(the_run(experiment).exit.read_text())
    assert left["code"] == code and left["reason"].startswith(reason)
    assert reason in done.stderr


def test_rank_zero_that_is_killed_while_it_waits_for_another_has_said_why(experiment: Path) -> None:
    options = ["trainer.devices=2", "trainer.strategy=ddp", "model.init_args.how=hang"]
    done = call(experiment, "-m", "gradlab", "run", "mine.yaml", *options)
    assert done.returncode == -signal.SIGKILL, done.stderr  # Lightning's way to end what hangs
    run = the_run(experiment)
    left = run.read_exit()
    assert run.status() == "failed" and left is not None
    assert left["code"] == 9 and left["reason"].startswith("rank 1 failed, left with exit code 9 (")


def test_two_nodes_have_one_run_and_the_other_says_where(experiment: Path) -> None:
    address = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1")
    torchrun = ("-m", "torch.distributed.run", *address, "--master-port", str(free_port()))
    run = ("-m", "gradlab", "run", "mine.yaml", "trainer.num_nodes=2", "--runs")
    nodes = [start(experiment, *torchrun, "--node-rank", rank, *run, f"runs{rank}") for rank in ("0", "1")]
    first, second = map(end, nodes)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    (folder,) = all_runs(experiment / "runs0")
    left = folder.read_exit()
    assert folder.status() == "done" and left is not None and left["steps"] == 5
    assert not (experiment / "runs1").exists() and "this node" not in first.stderr
    said = f"this node takes part in 127.0.0.1:{folder.path.resolve()}; rank zero writes the results there"
    assert second.stderr.count("this node") == 1 and said in second.stderr
