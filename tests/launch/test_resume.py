"""Every kind of data pipeline: a run that is stopped and resumed is, batch for batch, one that is not."""

import os
import random
import signal
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from gradlab.launch.checkpoints import LastCheckpoint
from gradlab.launch.continuation import Continuation
from gradlab.launch.messages import quiet_lightning
from gradlab.launch.signals import STOPS, StopAfterStep, StopRequest

ROWS = 40


def row(index, noise=0.0):
    return {"id": index, "x": torch.tensor([index / ROWS, 1.0]) + noise}


def leaves(batch):
    """The single batches of what one or several loaders gave."""
    if isinstance(batch, dict) and "id" in batch:
        return [batch]
    parts = batch.values() if isinstance(batch, dict) else batch
    return [leaf for part in parts if part is not None for leaf in leaves(part)]


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        parts = leaves(batch)
        self.seen.append([part["id"].tolist() for part in parts])
        return sum(self.net(part["x"].to(self.dtype)).square().mean() for part in parts)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val", self.net(leaves(batch)[0]["x"].to(self.dtype)).mean() + torch.rand(()))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Stop(pl.Callback):
    """Asks the process to stop during the training batch of that number, counted over epochs."""

    def __init__(self, batch, number=signal.SIGTERM):
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


class Die(Stop):
    """Ends there as `kill -9` does: nothing is saved any more."""

    class Killed(Exception):
        pass

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise self.Killed


class Data(pl.LightningDataModule):
    def __init__(self, train, val=None):
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self):
        return self.train()

    def val_dataloader(self):
        return self.val() if self.val else []


@pytest.fixture
def fit(tmp_path):
    last = tmp_path / "last.ckpt"

    def fit(train, *extra, val=None, plain=False, net=Net, **options):
        with warnings.catch_warnings(), quiet_lightning():
            for module in ("pytorch_lightning", "lightning_fabric", "torch"):
                warnings.filterwarnings("ignore", module=module)
            pl.seed_everything(3, workers=True)
            model, data = net(), Data(train, val)
            with StopRequest() as request:
                ours = [] if plain else [Continuation(request), StopAfterStep(request), LastCheckpoint(last)]
                trainer = pl.Trainer(
                    **{"max_epochs": 2, **options},
                    accelerator="cpu",
                    logger=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    enable_checkpointing=not plain,
                    callbacks=[*ours, *extra],
                )
                try:
                    path = str(last) if last.exists() and not plain else None
                    trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=False)
                except (*STOPS, Die.Killed):
                    model.seen.append("stopped")
            return model

    fit.last = last
    return fit


@pytest.fixture(autouse=True)
def _seeds(monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")  # put back afterwards; Lightning sets it


def check(fit, train, *, stops=(3, 9, 14), plain=True, extra=tuple, **options):
    """The run that is never stopped, plain Lightning's, and those that are stopped at each of `stops` are one."""
    whole = fit(train, *extra(), **options)
    fit.last.unlink()
    if plain:
        assert fit(train, *extra(), plain=True, **options).seen == whole.seen
    for stop in stops:
        interruption = stop if isinstance(stop, pl.Callback) else Stop(stop)
        first = fit(train, *extra(), interruption, **options)
        assert first.seen.pop() == "stopped", f"stop {stop}"
        again = fit(train, *extra(), **options)
        fit.last.unlink()
        if isinstance(stop, Die):  # what came after the checkpoint is done again
            del first.seen[len(whole.seen) - len(again.seen) :]
        assert first.seen + again.seen == whole.seen, f"stop {stop}"
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), f"{name}, stop {stop}"
    return whole


class Rows(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return row(index)


class Noisy(Rows):
    """Augments with every global generator."""

    def __getitem__(self, index):
        return row(index, random.random() + np.random.rand() + torch.rand(()).item())


class OwnNoise(Rows):
    """Augments with a generator of its own, made when it is first needed."""

    rng = None

    def __getitem__(self, index):
        if self.rng is None:
            worker = get_worker_info()
            self.rng = np.random.default_rng(worker.seed if worker else 5)
        return row(index, self.rng.random())


MODULE_RNG = np.random.default_rng(0)


class GlobalNoise(Rows):
    def __getitem__(self, index):
        return row(index, MODULE_RNG.random())


class Counting(Rows):
    """Says what it remembers."""

    def __init__(self):
        self.asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return row(index, self.asked)

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


class Shuffles(Sampler):
    """Shuffles one list over and over, in place, with a generator of its own."""

    def __init__(self, rng):
        self.order, self.rng = list(range(ROWS)), rng

    def __len__(self):
        return ROWS

    def __iter__(self):
        self.rng.shuffle(self.order)
        return iter(list(self.order))


class Draws(Sampler):
    """Draws one index after the other from a generator of torch's."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(9)

    def __len__(self):
        return ROWS

    def __iter__(self):
        for _ in range(ROWS):
            yield int(torch.randint(ROWS, (), generator=self.generator))


class NumpyShuffle:
    """What `Shuffles` takes, with NumPy."""

    def __init__(self):
        self.rng = np.random.default_rng(1)

    def shuffle(self, order):
        order[:] = self.rng.permutation(order).tolist()


def own_generator():
    return DataLoader(Rows(), 4, shuffle=True, generator=torch.Generator().manual_seed(3))


PIPELINES = {
    "plain": lambda: DataLoader(Rows(), 4),
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "own generator": own_generator,
    "own generator and noise": lambda: DataLoader(OwnNoise(), 4, shuffle=True, generator=torch.Generator()),
    "replacement": lambda: DataLoader(Rows(), 4, sampler=RandomSampler(Rows(), replacement=True)),
    "weighted": lambda: DataLoader(
        Rows(), 4, sampler=WeightedRandomSampler(torch.rand(ROWS).tolist(), ROWS, generator=torch.Generator())
    ),
    "subset": lambda: DataLoader(Rows(), 4, sampler=SubsetRandomSampler(range(ROWS), torch.Generator())),
    "random.Random": lambda: DataLoader(Rows(), 4, sampler=Shuffles(random.Random(2))),
    "numpy": lambda: DataLoader(Rows(), 4, sampler=Shuffles(NumpyShuffle())),
    "draws": lambda: DataLoader(Noisy(), 4, sampler=Draws()),
    "batch sampler": lambda: DataLoader(Rows(), batch_sampler=BatchSampler(Draws(), 4, False)),
    "set_epoch": lambda: DataLoader(Rows(), 4, sampler=DistributedSampler(Rows(), 1, 0, seed=4)),
    "state_dict": lambda: DataLoader(Counting(), 4, shuffle=True),
    "own collate": lambda: DataLoader(Rows(), 4, shuffle=True, collate_fn=Collates()),
    "no batches": lambda: DataLoader([{"id": torch.tensor([i]), "x": torch.ones(1, 2) * i} for i in range(10)], None),
}


class Collates:
    def __init__(self):
        self.rng = random.Random(1)

    def __call__(self, samples):
        batch = torch.utils.data.default_collate(samples)
        return {**batch, "x": batch["x"] * self.rng.random()}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_map_style_pipeline_goes_on(fit, name):
    check(fit, PIPELINES[name], stops=(3, 9, 14))


def test_a_data_set_that_draws_from_a_global_of_its_module_goes_on(fit):
    initial = MODULE_RNG.bit_generator.state

    def train():
        MODULE_RNG.bit_generator.state = initial
        return DataLoader(GlobalNoise(), 4)

    check(fit, train, stops=(3, 14))


class Stream(IterableDataset):
    """Rows with noise, without a length."""

    def __init__(self, rows=ROWS):
        self.rows = rows

    def __iter__(self):
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(start, self.rows, step):
            yield row(index, random.random() + np.random.rand() + torch.rand(()).item())


class SizedStream(Stream):
    def __len__(self):
        return self.rows


class Resumable(Stream):
    """Says where it is; draws from a generator that is part of what it says."""

    def __init__(self, rows=ROWS):
        super().__init__(rows)
        self.rng, self.at = random.Random(4), 0

    def __iter__(self):
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while start + self.at * step < self.rows:
            self.at += 1
            yield row(start + (self.at - 1) * step, self.rng.random() + torch.rand(()).item())
        self.at = 0

    def state_dict(self):
        return {"at": self.at, "rng": self.rng.getstate()}

    def load_state_dict(self, state):
        self.at = state["at"]
        self.rng.setstate(state["rng"])


STREAMS = {
    "stream": lambda: DataLoader(Stream(), 4),
    "uneven stream": lambda: DataLoader(Stream(38), 4),
    "sized stream": lambda: DataLoader(SizedStream(), 4),
    "resumable": lambda: DataLoader(Resumable(), 4),
    "list": lambda: Listed([torch.utils.data.default_collate([row(i)]) for i in range(10)]),
    "iterable": lambda: Endless(),
}


class Listed:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class Endless:
    """Batches made on the fly, without a length."""

    def __init__(self):
        self.rng = np.random.default_rng(1)

    def __iter__(self):
        for index in range(10):
            yield torch.utils.data.default_collate([row(index, self.rng.random())])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on(fit, name):
    check(fit, STREAMS[name])


def workers(dataset, number=2, **options):
    return lambda: DataLoader(dataset, 4, num_workers=number, **options)


WORKERS = {
    "shuffled": workers(Noisy(), shuffle=True),
    "persistent": workers(Noisy(), shuffle=True, persistent_workers=True),
    "own generator": lambda: workers(Noisy(), shuffle=True, generator=torch.Generator(), persistent_workers=True)(),
    "own noise": lambda: workers(OwnNoise(), shuffle=True, persistent_workers=True)(),
    "counting": lambda: workers(Counting(), persistent_workers=True)(),
    "draws": lambda: workers(Noisy(), sampler=Draws())(),
    "stream": workers(Stream()),
    "persistent stream": workers(Stream(), persistent_workers=True),
    "resumable": lambda: workers(Resumable())(),
    "three": workers(Noisy(), 3, shuffle=True, persistent_workers=True),
}


@pytest.mark.parametrize("name", WORKERS)
def test_the_workers_of_a_loader_go_on(fit, name):
    check(fit, WORKERS[name])


@pytest.mark.slow
def test_workers_that_are_spawned_go_on(fit):
    check(fit, workers(Noisy(), 1, shuffle=True, multiprocessing_context="spawn"), stops=(13,), plain=False)


def stateful(dataset, **options):
    def train():
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(dataset, batch_size=4, **options)

    return train


STATEFUL = {
    "plain": stateful(Rows()),
    "shuffled": stateful(Noisy(), shuffle=True),
    "own generator": lambda: stateful(Rows(), shuffle=True, generator=torch.Generator())(),
    "workers": stateful(Noisy(), shuffle=True, num_workers=2),
    "persistent": stateful(Noisy(), shuffle=True, num_workers=2, persistent_workers=True),
    "stream": stateful(Stream()),
    "resumable": lambda: stateful(Resumable())(),
    "resumable workers": lambda: stateful(Resumable(), num_workers=2)(),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_stateful_loader_goes_on(fit, name):
    pytest.importorskip("torchdata")
    check(fit, STATEFUL[name])


SEVERAL = {
    "dict": lambda: {"a": own_generator(), "b": DataLoader(Noisy(), 8, shuffle=True)},
    "list": lambda: [DataLoader(Rows(), 4, shuffle=True), DataLoader(Noisy(), 5)],
    "min_size": lambda: CombinedLoader([DataLoader(Rows(), 4, shuffle=True), DataLoader(Noisy(), 3)], "min_size"),
    "max_size": lambda: CombinedLoader([DataLoader(Rows(), 4), DataLoader(Noisy(), 8, shuffle=True)], "max_size"),
    "with a stream": lambda: [DataLoader(Noisy(), 8, shuffle=True), DataLoader(Stream(), 4)],
    "max_size with a stream": lambda: CombinedLoader(
        [DataLoader(Noisy(), 8, shuffle=True), DataLoader(Stream(), 4)], "max_size"
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_loaders_go_on(fit, name):
    check(fit, SEVERAL[name], stops=(3, 7, 9, 14))
