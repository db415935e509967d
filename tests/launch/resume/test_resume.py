"""Every kind of data pipeline: a run that is stopped and resumed is, batch for batch, one that is not."""

import os
import random
import signal
import warnings
from pathlib import Path

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
from torchmetrics import MeanMetric

from gradlab.launch.messages import quiet_lightning
from gradlab.launch.resume.checkpoints import LastCheckpoint
from gradlab.launch.resume.continuation import Continuation
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


class StopInValidation(Stop):
    """Asks to stop in one batch of the validation after a step."""

    def __init__(self, step, batch):
        self.step, self.batch = step, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if (trainer.global_step, batch_idx + dataloader_idx) == (self.step, self.batch):
            os.kill(os.getpid(), signal.SIGTERM)


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


def cases(table, *quick):
    """The names of a table; those that are not `quick` are tried with the slow tests."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in table]


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


QUICK = ("own generator and noise", "random.Random", "draws", "set_epoch", "state_dict", "own collate")


@pytest.mark.parametrize("name", cases(PIPELINES, *QUICK))
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


@pytest.mark.parametrize("name", cases(WORKERS, "persistent", "own noise", "persistent stream"))
def test_the_workers_of_a_loader_go_on(fit, name):
    check(fit, WORKERS[name])


@pytest.mark.slow
def test_workers_that_are_spawned_go_on(fit, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # where a spawned worker finds this file by its name
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


@pytest.mark.parametrize("name", cases(STATEFUL, "own generator", "resumable", "persistent"))
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


@pytest.mark.parametrize("name", cases(SEVERAL, "dict", "with a stream"))
def test_several_loaders_go_on(fit, name):
    check(fit, SEVERAL[name], stops=(3, 7, 9, 14))


def shuffled():
    return DataLoader(Noisy(), 4, shuffle=True)


@pytest.mark.parametrize(
    "val",
    [
        lambda: DataLoader(Noisy(), 8),
        lambda: DataLoader(Rows(), 8, shuffle=True, generator=torch.Generator()),
        lambda: [DataLoader(Noisy(), 20, sampler=Draws()), DataLoader(OwnNoise(), 20)],
        lambda: DataLoader(Noisy(), 8, num_workers=1, persistent_workers=True),
    ],
)
def test_what_validation_draws_is_drawn_again(fit, val):
    """Also where it is cut short: then it is done again from its start."""
    check(fit, shuffled, val=val, val_check_interval=5, stops=(3, StopInValidation(5, 1), StopInValidation(10, 1), 14))


class StopInSanityCheck(Stop):
    def __init__(self):
        pass

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass

    def on_sanity_check_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_stopped_in_the_sanity_check_begins_at_its_start(fit):
    whole = fit(shuffled, val=shuffled)
    fit.last.unlink()
    fit(shuffled, StopInSanityCheck(), val=shuffled)
    assert not fit.last.exists()
    assert fit(shuffled, val=shuffled).seen == whole.seen


def test_a_run_that_is_killed_goes_on_from_its_last_epoch(fit):
    for train in (shuffled, own_generator, workers(Noisy(), shuffle=True, persistent_workers=True)):
        check(fit, train, stops=(Die(13),))


@pytest.mark.parametrize("train", [shuffled, lambda: DataLoader(Stream(), 4)])
def test_an_accumulation_that_is_under_way_goes_on(fit, train):
    """A validation that is cut short lies in the middle of one."""
    options = {"accumulate_grad_batches": 4, "val": lambda: DataLoader(Rows(), 8), "val_check_interval": 5}
    check(fit, train, stops=(3, 11, StopInValidation(1, 1)), **options)


class Manual(Net):
    """Steps every third batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.trainer.fit_loop.epoch_loop.total_batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_gradients_that_a_manual_optimization_has_gathered_go_on(fit):
    check(fit, shuffled, net=Manual, stops=(3, 9, 13))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "16-true"])
def test_every_precision_goes_on(fit, precision):
    check(fit, shuffled, precision=precision, stops=(9, 13))


class Plateau(Net):
    """Schedules by the mean loss of an epoch, and counts with a metric of torchmetrics."""

    def __init__(self):
        super().__init__()
        self.count, self.told = MeanMetric(), []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.count.update(loss.detach())
        self.log("count", self.count)
        return loss

    def on_train_epoch_end(self):
        self.told.append((self.trainer.callback_metrics["loss"].item(), self.count.compute().item()))
        self.optimizers().param_groups[0]["weight_decay"] = sum(self.told[-1])  # the values reach the weights

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "loss"}}


@pytest.mark.parametrize("stop", [9, Die(13), 13, StopInValidation(15, 1)])
def test_what_schedules_and_metrics_have_gathered_goes_on(fit, stop):
    check(
        fit, shuffled, net=Plateau, stops=(stop,), max_epochs=3, val=lambda: DataLoader(Rows(), 8), val_check_interval=5
    )


class Average(pl.Callback):
    """A moving average of the weights."""

    def __init__(self):
        self.weights = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        self.weights = now if self.weights is None else self.weights.lerp(now, 0.1)
        with torch.no_grad():
            pl_module.net[0].bias.add_(self.weights.mean() * 0.01)

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = state["weights"]


def test_a_moving_average_goes_on(fit):
    check(fit, shuffled, extra=lambda: [Average()], stops=(9, 13))


class DrawsInHooks(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        torch.rand(3)

    def on_train_epoch_start(self, trainer, pl_module):
        torch.rand(3)
        random.random()

    def on_validation_start(self, trainer, pl_module):
        np.random.rand()


@pytest.mark.parametrize("train", [shuffled, own_generator])
def test_what_hooks_draw_is_drawn_when_it_was(fit, train):
    check(fit, train, extra=lambda: [DrawsInHooks()], val=lambda: DataLoader(Rows(), 8))


@pytest.mark.parametrize(
    "options", [{"reload_dataloaders_every_n_epochs": 1}, {"max_steps": 17}, {"overfit_batches": 3}]
)
def test_other_ways_to_count_go_on(fit, options):
    check(fit, own_generator, stops=(2, 3, 4), **options)


class OpenFile(IterableDataset):
    def __init__(self):
        self.lines = iter(range(ROWS))

    def __iter__(self):
        return (row(index) for index in self.lines)


class Impatient(Rows):
    rng = random.SystemRandom()

    def __init__(self):
        self.rng = random.SystemRandom()


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda: DataLoader(OpenFile(), 4), r"DataLoader.dataset.lines is an open iterator \(range_iterator\)"),
        (lambda: DataLoader(Impatient(), 4), "DataLoader.dataset.rng draws from the operating system"),
        (lambda: DataLoader(Rows(), 4, num_workers=1, in_order=False), "has in_order=False"),
        (lambda: (torch.utils.data.default_collate([row(i)]) for i in range(9)), "generator is an open iterator"),
    ],
)
def test_what_cannot_be_restored_is_said_before_training(fit, train, said):
    with pytest.warns(UserWarning, match=said) as caught:
        fit(train, max_epochs=1)
    assert sum("a run that is stopped and resumed" in str(warning.message) for warning in caught) == 1


class Unrepeatable(IterableDataset):
    """Begins elsewhere each time, by a state that nobody can see."""

    starts = iter([0, 3, 6, 9])

    def __iter__(self):
        start = next(self.starts)
        return (row(index) for index in range(start, ROWS))


class Restless(Sampler):
    calls = iter(range(100))

    def __len__(self):
        return ROWS

    def __iter__(self):
        first = next(type(self).calls)
        return iter([(first + index) % ROWS for index in range(ROWS)])


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (lambda: DataLoader(Unrepeatable(), 4), "DataLoader of Unrepeatable gave other batches when it was read again"),
        (lambda: DataLoader(Rows(), 4, sampler=Restless()), "the sampler of DataLoader of Rows draws other samples"),
    ],
)
def test_what_turns_out_not_to_repeat_itself_is_said_before_training(fit, train, said):
    fit(train, Stop(3))
    with pytest.warns(UserWarning, match=said):
        fit(train)


def test_another_pipeline_than_before_is_said(fit):
    fit(shuffled, Stop(3))
    with pytest.warns(UserWarning, match="the run had DataLoader of Noisy where DataLoader of Stream is now"):
        fit(lambda: DataLoader(Stream(), 4))


def test_a_further_rank_reads_what_it_has_written_beside_the_checkpoint(fit, tmp_path, monkeypatch):
    """Without processes: what a rank writes, and what it makes of a file of another step or of none."""
    stop = Stop(3)
    monkeypatch.setattr(stop, "setup", lambda trainer, pl_module, stage: found.append(trainer))
    found = []
    fit(shuffled, stop)
    (trainer,) = found
    (continuation,) = (callback for callback in trainer.callbacks if isinstance(callback, Continuation))
    checkpoint = fit.last
    whole = continuation.state_dict()
    monkeypatch.setattr(type(trainer), "global_rank", 1)
    monkeypatch.setattr(type(trainer), "ckpt_path", str(checkpoint))
    continuation.save_rank(checkpoint)
    assert (tmp_path / "last-rank1.ckpt").is_file()
    continuation.load_state_dict(whole)
    assert continuation._saved["at"] == whole["own"]["at"]
    later = {**whole, "own": {**whole["own"], "at": (9, 9, False)}}
    with pytest.warns(UserWarning, match="is of another step, so rank 1 does not go on exactly"):
        continuation.load_state_dict(later)
    (tmp_path / "last-rank1.ckpt").unlink()
    with pytest.warns(UserWarning, match="is missing, so rank 1 does not go on exactly"):
        continuation.load_state_dict(whole)


def test_another_number_of_processes_is_said():
    continuation = Continuation()
    continuation._trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.warns(UserWarning, match="was written by 4 processes and this run has 1"):
        continuation.load_state_dict({"version": 2, "ranks": 4, "own": {}})
    with pytest.warns(UserWarning, match="does not say where the run was in its data"):
        continuation.load_state_dict({"taken": 3})
