"""A small training in which everything random matters: shuffled batches, dropout, batch norm, a schedule."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class SmallModel(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.validated_at = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.validated_at.append(self.global_step)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class SmallData(pl.LightningDataModule):
    """40 samples in 5 batches."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(40, 4, generator=generator), torch.randint(0, 2, (40,), generator=generator)
        self.samples = TensorDataset(x, y)

    def train_dataloader(self):
        return DataLoader(self.samples, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.samples, 8)


@pytest.fixture
def small_model():
    return SmallModel


@pytest.fixture
def small_data():
    return SmallData
