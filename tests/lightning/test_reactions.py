"""Reactions to findings in a Trainer of one's own: a checkpoint, a sharpness of the training step's loss, a stop."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.warnings import PossibleUserWarning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradlab
from gradlab import Diagnose, Finding, TrainingStopped
from gradlab.errors import GradlabWarning
from gradlab.lightning.callback import GradlabCallback
from gradlab.sinks import MemorySink


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        x, y = torch.randn(96, 5), torch.randint(0, 3, (96,))
        return DataLoader(TensorDataset(x, y), 8)


class Found(pl.Callback):
    """Reports a finding of a code after a batch."""

    def __init__(self, watch: GradlabCallback, code: str, at: int = 3) -> None:
        self.watch, self.code, self.at = watch, code, at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in (self.at, self.at + 2):
            self.watch.monitor.report(
                Finding(code=self.code, name="x", first_step=self.at, message=f"wrong at {batch_idx}.")
            )


def fit(on_finding: Any, tmp_path: Path, code: str = "GL301") -> tuple[pl.Trainer, MemorySink, GradlabCallback]:
    sink = MemorySink()
    watch = GradlabCallback(
        sinks=sink, diagnose=Diagnose(on_finding=on_finding), performance=False, strict=True, profile_dir=tmp_path
    )
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[watch, Found(watch, code)],
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, few batches: meant so
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's, with torch 2.13
        trainer.fit(Module())
    return trainer, sink, watch


def test_a_checkpoint_is_saved_once_and_training_goes_on(tmp_path: Path) -> None:
    trainer, _, _ = fit("checkpoint", tmp_path)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert (saved.name, trainer.global_step) == ("finding-step4.ckpt", 12)
    assert torch.load(saved, weights_only=False)["global_step"] == 4


def test_three_steps_are_profiled(tmp_path: Path) -> None:
    fit("profile", tmp_path)
    assert len(list((tmp_path / "profile").glob("step_*"))) == 1


def test_the_sharpness_is_that_of_the_training_steps_loss(tmp_path: Path) -> None:
    _, sink, _ = fit("jacobian", tmp_path)
    ((step, block),) = sink.blocks
    assert (step, block.kind, block.label) == (4, "sharpness", "GL301") and block.summaries["lambda_1"] > 0


def test_growth_is_measured_on_a_batch(tmp_path: Path) -> None:
    _, sink, _ = fit("jacobian", tmp_path, "GL402")
    ((_, block),) = sink.blocks
    assert (block.kind, block.row_names) == ("depth_growth", ("input", "net.0", "net.2"))


def test_stop_ends_the_fit_by_an_exception_of_its_own(tmp_path: Path) -> None:
    with (
        pytest.warns(GradlabWarning, match="stopped by GL301 at step 3: wrong at 3"),
        pytest.raises(TrainingStopped) as caught,
    ):
        fit("stop", tmp_path)
    assert caught.value.code == 79


def test_a_function_hears_of_it(tmp_path: Path) -> None:
    seen: list[Finding] = []
    fit(seen.append, tmp_path)
    assert [one.message for one in seen] == ["wrong at 3."]


def test_nothing_is_looked_for_where_that_is_switched_off(tmp_path: Path) -> None:
    assert GradlabCallback(diagnose=False).diagnose is False
    with pytest.raises(gradlab.ArgumentError, match="diagnose must be"):
        GradlabCallback(diagnose="GL301")  # type: ignore[arg-type]
