"""Jacobians under Lightning: probe batches of training and validation, the training step's loss, and no trace."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.warnings import PossibleUserWarning

import gradlab
from gradlab.data import Digits
from gradlab.errors import JacobianError
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Sharpness
from gradlab.lightning.callback import GradlabCallback
from gradlab.lightning.loss import TrainingLoss
from gradlab.models import MLP
from gradlab.sinks import MemorySink

SPECS = [
    JacobianSlice(of="output", wrt="input", every=5, samples=4, reduce="rms"),
    JacobianSlice(of="output", wrt="input", every=5, samples=4, reduce="rms", probe="validation"),
    JacobianSlice(of="output", wrt="layers.0", every=5, mode="live", samples=3),
    DepthGrowth(at=["layers.0", "layers.1"], every=10),
    Sharpness(every=10, samples=16),
]


def fit(specs: list[Any], **options: Any) -> tuple[MLP, MemorySink, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    model, sink = MLP([16, 12], dropout=0.2), MemorySink(last=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, few batches: meant so
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's, with torch 2.13
        quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False)
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            limit_train_batches=11,
            callbacks=[GradlabCallback(taps=[], jacobians=specs, sinks=[sink], strict=True)],
            **quiet,
            **options,
        )
        trainer.fit(model, datamodule=Digits(batch_size=32))
    return model, sink, trainer


def test_training_is_bit_identical_and_everything_is_logged() -> None:
    plain, _, plain_trainer = fit([])
    watched, sink, trainer = fit(SPECS)
    torch.testing.assert_close(watched.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert trainer.callback_metrics == plain_trainer.callback_metrics
    steps: dict[str, list[int]] = {}
    for step, block in sink.blocks:
        steps.setdefault(block.name, []).append(step)
    assert steps == {
        "output__wrt__input": [0, 5, 10],
        "output__wrt__input@validation": [0, 5, 10],
        "output__wrt__layers.0": [0, 5, 10],
        "output__growth__input": [0, 10],
        "loss__sharpness__parameters": [0, 10],
    }
    assert all(block.audit_error < 2e-3 for _, block in sink.blocks)
    assert "log" not in vars(watched)


def test_the_probes_are_the_first_samples_of_their_data() -> None:
    model, sink, _ = fit(SPECS[:2], num_sanity_val_steps=1)
    data = Digits(batch_size=32)
    data.setup()
    found = dict((block.name, block) for _, block in sink.blocks)
    for name, loader in (("", data.train_dataloader()), ("@validation", data.val_dataloader())):
        expected = gradlab.jacobian(model, next(iter(loader))[0][:4], reduce="rms")
        np.testing.assert_allclose(found[f"output__wrt__input{name}"].values, expected.values, rtol=1e-4, atol=1e-6)


def test_a_module_that_optimizes_by_hand_needs_a_loss_of_its_own() -> None:
    model = MLP([4])
    model.automatic_optimization = False
    with pytest.raises(JacobianError, match=r"give Sharpness\(loss=\.\.\.\)"):
        TrainingLoss(model, 4)
