"""Looking at the first batch before training leaves to training what it would have had."""

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, random_split

from gradlab.launch.first_batch import OnceOnlyError, first_batch


class Module(pl.LightningModule):
    pass


class Rows(Dataset):
    def __init__(self):
        self.rng, self.asked = np.random.default_rng(0), 0

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.asked += 1
        return torch.tensor([index, self.rng.random(), random.random(), self.asked], dtype=torch.float64)


class Order(Sampler):
    def __init__(self):
        self.order, self.epoch = list(range(20)), 0

    def __len__(self):
        return 20

    def __iter__(self):
        self.epoch += 1
        random.Random(self.epoch).shuffle(self.order)
        return iter(self.order)


class Once(IterableDataset):
    def __init__(self):
        self.rows = iter(range(20))

    def __iter__(self):
        return self.rows


class Counts(IterableDataset):
    """Reads on where it was."""

    at = 0

    def __iter__(self):
        while self.at < 20:
            self.at += 1
            yield self.at

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Data(pl.LightningDataModule):
    def __init__(self, make):
        super().__init__()
        self.make = make
        self.loader = None

    def train_dataloader(self):
        """The same loader each time, as some data modules have it."""
        if self.loader is None:
            self.loader = self.make()
        return self.loader


class Splits(pl.LightningDataModule):
    """Splits once, with random numbers."""

    rows = None

    def setup(self, stage):
        if self.rows is None:
            self.rows, _ = random_split(Rows(), [10, 10])

    def train_dataloader(self):
        return DataLoader(self.rows, 4, shuffle=True)


def batches(data):
    """What training would get, and the random numbers after it."""
    data.setup("fit")
    loader = data.train_dataloader()
    combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
    return [repr(batch) for batch, _, _ in combined], random.random(), np.random.rand(), torch.rand(1).item()


PIPELINES = {
    "own generator": lambda: DataLoader(Rows(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "own sampler": lambda: DataLoader(Rows(), 4, sampler=Order()),
    "workers": lambda: DataLoader(Rows(), 4, shuffle=True, num_workers=1, persistent_workers=True),
    "stream": lambda: DataLoader(Counts(), 4),
    "dict": lambda: {"a": DataLoader(Rows(), 4), "b": DataLoader(Rows(), 5, sampler=Order())},
    "combined": lambda: CombinedLoader([DataLoader(Rows(), 4, generator=torch.Generator())], "min_size"),
}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's CombinedLoader on torch's trees
@pytest.mark.parametrize("make", [*PIPELINES.values(), None], ids=[*PIPELINES, "split"])
def test_training_gets_the_batches_that_it_would_have_had(make):
    expected = None
    for looks in (False, True):
        pl.seed_everything(1)
        data = Data(make) if make else Splits()
        if looks:
            first_batch(Module(), data)
        got = batches(data)
        expected = expected or got
    assert got == expected


def test_the_model_may_bring_the_loaders():
    class Brings(Module):
        def train_dataloader(self):
            return DataLoader(list(range(8)), 4)

    assert first_batch(Brings(), None).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [lambda: DataLoader(Once(), 4), lambda: iter([1, 2]), lambda: (n for n in range(3))])
def test_what_can_be_read_once_is_left_alone(make):
    data = Data(make)
    with pytest.raises(OnceOnlyError, match="is an open iterator"):
        first_batch(Module(), data)
    assert len(list(data.train_dataloader())) in (2, 3, 5)
