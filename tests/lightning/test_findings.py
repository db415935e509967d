"""What is found in a fit is told in Lightning's own log, once."""

from __future__ import annotations

import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradlab.lightning.callback import GradlabCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers


class Net(pl.LightningModule):
    """A classifier with a softmax before cross_entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_finding_is_a_line_in_lightnings_log(tmp_path, caplog, capsys):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,)))
    callback = GradlabCallback(logdir=tmp_path)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=2, logger=False, callbacks=[callback], accelerator="cpu", **options)
    with caplog.at_level(logging.INFO):
        trainer.fit(Net(), DataLoader(data, 8))
    lines = [one for one in caplog.messages if one.startswith("gradlab: ")]
    assert len([one for one in lines if "GL201 since step 0: the outputs go through a softmax" in one]) == 1
    assert "open it in TensorBoard" not in capsys.readouterr().err
