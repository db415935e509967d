"""An experiment's folder with a user's module in it, and a way to read what is said about a wrong file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradlab.config import load
from gradlab.errors import ConfigError

MINE = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
    def __init__(self, widths: list[int], in_features: int = 4, activation: str = "relu", dropout: float | None = None):
        super().__init__()
        if dropout is not None and dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout}")
        self.layers = torch.nn.Sequential(torch.nn.Linear(in_features, widths[0]), torch.nn.Linear(widths[0], 2))
        widths.append(2)


class Complete(Net):
    def __init__(self, **options):
        super().__init__([3], **options)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(16, 4)))


class Data(pl.LightningDataModule):
    def __init__(self, batch_size: int = 8):
        super().__init__()
        self.batch_size = batch_size


class Plain:
    pass


class Stubborn(torch.optim.SGD):
    def __init__(self, params, lr: float = 1.0, depth: int = 0):
        super().__init__(params, lr)
        if depth > 3:
            raise RuntimeError("too deep")


def function():
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment's folder, which is also the working directory, with `mine.py` in it."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(folder: Path) -> Callable[..., str]:
    """`refused(text, *overrides, deep=False)`: what is said about an experiment.yaml with this content."""

    def read(content: str | bytes, *overrides: str, deep: bool = False) -> str:
        (folder / "experiment.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(ConfigError) as caught:
            load("experiment.yaml", overrides, deep=deep)
        assert caught.value.exit_code == 2
        assert len(caught.value.problems) == int(str(caught.value).splitlines()[-1].split()[0])
        return str(caught.value)

    return read


@pytest.fixture
def loaded(folder: Path):
    """`loaded(text, *overrides, deep=False)`: the experiment with this content."""

    def read(content: str, *overrides: str, deep: bool = False):
        (folder / "experiment.yaml").write_text(content)
        return load("experiment.yaml", overrides, deep=deep)

    return read
