"""Short training for the tests of the models: a bare loop, and a quiet Trainer."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
from pytorch_lightning.utilities.warnings import PossibleUserWarning


@pytest.fixture
def train():
    """`train(model, batches)` -> the losses of one optimizer step a batch, in a loop without Lightning's Trainer."""

    def run(model: pl.LightningModule, batches) -> list[float]:
        model.log = model.log_dict = lambda *args, **kwargs: None  # Lightning warns where no trainer listens
        optimizer = model.configure_optimizers()
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = model.training_step(batch, 0)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        del model.log, model.log_dict
        return losses

    return run


@pytest.fixture
def fit(tmp_path):
    """`fit(model, data, max_epochs=1)` -> the Trainer after a fit on the CPU that writes nothing."""

    def run(model: pl.LightningModule, data: pl.LightningDataModule | None = None, **options) -> pl.Trainer:
        defaults = dict(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
        quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, few batches: meant so
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's, with torch 2.13
            trainer = pl.Trainer(**{**defaults, **quiet, **options})
            trainer.fit(model, datamodule=data)
        return trainer

    return run
