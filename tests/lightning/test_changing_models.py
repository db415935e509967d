"""Lightning modules that change while they are fitted: no finding that is not true."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from gradlab import Tap
from gradlab.lightning.callback import GradlabCallback


class Net(pl.LightningModule):
    def __init__(self, change: Callable[[Net], None]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.change = change

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.change(self)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss: Tensor = self.head(self.body(batch)).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2)


def new_head_in_the_same_optimizer(net: Net) -> None:
    net.head = nn.Linear(6, 3)
    net.optimizers().add_param_group({"params": net.head.parameters()})  # type: ignore[union-attr]


def new_optimizer_of_everything(net: Net) -> None:
    net.head = nn.Linear(6, 3)
    net.trainer.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1)]


def new_optimizer_of_the_new_head(net: Net) -> None:
    net.head = nn.Linear(6, 3)
    net.trainer.optimizers = [torch.optim.SGD(net.head.parameters(), lr=0.1)]


def new_optimizer_of_the_same(net: Net) -> None:
    net.trainer.optimizers = [torch.optim.AdamW(net.parameters())]


def frozen_body(net: Net) -> None:
    net.body.requires_grad_(False)
    net.head = nn.Linear(6, 3)
    net.trainer.optimizers = [torch.optim.SGD(net.head.parameters(), lr=0.1)]


@pytest.mark.parametrize(
    "change",
    [
        new_head_in_the_same_optimizer,
        new_optimizer_of_everything,
        new_optimizer_of_the_new_head,
        new_optimizer_of_the_same,
        frozen_body,
    ],
)
def test_a_module_that_changes_between_epochs_is_followed(change: Callable[[Net], None], tmp_path: Any) -> None:
    callback = GradlabCallback(
        taps=[Tap("*", of=["weight_grad", "output"])], sinks=[], performance=True, strict=True, profile_dir=tmp_path
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback], default_root_dir=tmp_path,
        )  # fmt: skip
        net = Net(change)
        trainer.fit(net)
    assert callback.findings == []
    monitor = callback.monitor
    assert monitor is not None and monitor.step == trainer.global_step == 12
    steps, values = monitor.history("weight_grad.norm", "head.weight")
    assert steps.tolist() == list(range(12)) and (values > 0).all()
    assert net.head.weight.grad is not None
    assert values[-1] == pytest.approx(float(net.head.weight.grad.norm()), rel=1e-5)
