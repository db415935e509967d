"""The command line through its real entry point."""

from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradlab.cli.main import main
from gradlab.runs.find import all_runs


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """As in a shell that finds `gradlab`, whatever shell runs the tests."""
    monkeypatch.setattr("gradlab.launch.hints.program", lambda: "gradlab")


@pytest.fixture
def gradlab():
    """Call `gradlab` with arguments: `.exit_code`, `.stdout`, `.stderr`. An unexpected exception fails the test."""

    def call(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="gradlab")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


USER_CODE = """
import os, signal
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Model(pl.LightningModule):
    def __init__(
        self,
        kill: dict[str, int] | None = None,
        fail_at: int | None = None,
        nan_at: int | None = None,
        full_at: int | None = None,
    ):
        super().__init__()
        self.full_at = full_at
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.kill, self.fail_at, self.nan_at = kill or {}, fail_at, nan_at

    def forward(self, x):
        if self.training and self.full_at is not None and self.global_step == self.full_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
        return self.net(x)

    def training_step(self, batch, batch_idx):
        for name, step in self.kill.items():
            if self.global_step == step and not os.path.exists("killed"):
                open("killed", "w").close()
                os.kill(os.getpid(), getattr(signal, name))
        if self.global_step == self.fail_at:
            raise ArithmeticError("the user's mistake")
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss * float("nan") if self.global_step == self.nan_at else loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(40, 4, generator=generator), torch.randint(0, 2, (40,), generator=generator)
        return DataLoader(TensorDataset(x, y), 8, shuffle=True)
"""

EXPERIMENT = """# A model of the user's own.
name: mine
seed: 7
model: {{class_path: {module}.Model}}
data: {{class_path: {module}.Data}}
trainer: {{max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}}
taps:
  - {{at: "*", of: weight_grad}}
"""

_number = count()


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An experiment file whose model is a module beside it: 3 epochs of 5 steps. Runs go to ./runs."""
    module = f"users_module_{next(_number)}"
    (tmp_path / f"{module}.py").write_text(USER_CODE)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT.format(module=module))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADLAB_RUNS", raising=False)
    return tmp_path / "mine.yaml"


@pytest.fixture
def the_run(experiment):
    """The one run that there is."""

    def the_run():
        (run,) = all_runs(Path("runs"))
        return run

    return the_run
