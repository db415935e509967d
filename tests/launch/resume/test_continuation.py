"""A training that is stopped and resumed ends, bit for bit, where one that was left alone ends."""

import copy
import logging
import os
import pickle
import signal
import warnings
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from gradlab.errors import UsageError
from gradlab.launch.messages import quiet_lightning
from gradlab.launch.random_state import restore, snapshot, undisturbed
from gradlab.launch.resume.checkpoints import LastCheckpoint, saved_step
from gradlab.launch.resume.continuation import Continuation
from gradlab.launch.resume.loaders import follow
from gradlab.launch.signals import STOPS, StopAfterStep, StopRequest


class SendSignal(pl.Callback):
    """Sends this process a signal during one training batch, or during one batch of the validation after a step."""

    def __init__(self, number, *, batch=None, validation=None):
        self.number, self.batch, self.validation = number, batch, validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking and (trainer.global_step, batch_idx) == self.validation:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def fit(tmp_path, small_model, small_data):
    last = tmp_path / "last.ckpt"

    def fit(interruption=None, **options):
        """Fit three epochs, from the last checkpoint where there is one; returns model, trainer, whether it stopped."""
        with warnings.catch_warnings(), quiet_lightning():
            warnings.simplefilter("ignore")  # Lightning's advice on workers, intervals and checkpoint folders
            pl.seed_everything(3)
            model, data = small_model(), small_data()
            with StopRequest() as request:
                callbacks = [Continuation(), StopAfterStep(request), LastCheckpoint(last)]
                trainer = pl.Trainer(
                    max_epochs=3,
                    accelerator="cpu",
                    logger=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    callbacks=[*callbacks, *([interruption] if interruption else [])],
                    **options,
                )
                try:
                    resume = str(last) if last.exists() else None
                    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False)
                except STOPS:
                    return model, trainer, True
            return model, trainer, False

    fit.last = last
    return fit


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("batch", [0, 3, 4, 5, 9, 14])
def test_stopped_at_any_step_and_resumed_the_weights_are_the_same(fit, batch, number):
    undisturbed_model, trainer, _ = fit()
    assert trainer.global_step == 15
    fit.last.unlink()
    _, trainer, stopped = fit(SendSignal(number, batch=batch))
    assert stopped and trainer.global_step == batch + 1
    assert saved_step(fit.last) == batch + 1
    resumed, trainer, stopped = fit()
    assert not stopped and trainer.global_step == 15
    assert same(undisturbed_model, resumed)


@pytest.mark.parametrize("batch", [0, 1, 2, 4])
def test_a_stop_waits_for_the_end_of_an_accumulation(fit, batch):
    undisturbed_model, _, _ = fit(accumulate_grad_batches=2)
    fit.last.unlink()
    _, trainer, _ = fit(SendSignal(signal.SIGTERM, batch=batch), accumulate_grad_batches=2)
    assert trainer.global_step == batch // 2 + 1
    resumed, _, _ = fit(accumulate_grad_batches=2)
    assert same(undisturbed_model, resumed)


@pytest.mark.parametrize("after", [(5, 0), (10, 3)])
def test_a_validation_that_was_cut_short_is_done_again_in_full(fit, after):
    undisturbed_model, _, _ = fit()
    fit.last.unlink()
    cut, _, stopped = fit(SendSignal(signal.SIGTERM, validation=after))
    assert stopped and after[0] not in cut.validated_at
    resumed, _, _ = fit()
    assert resumed.validated_at[0] == after[0]
    assert same(undisturbed_model, resumed)


@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 3},
        {"limit_train_batches": 0.6},
        {"overfit_batches": 3},
        {"overfit_batches": 0.6},
        {"reload_dataloaders_every_n_epochs": 1},
        {"max_steps": 11},
        {"val_check_interval": 2},
    ],
)
def test_other_ways_to_count_are_resumed_as_well(fit, options):
    undisturbed_model, reference, _ = fit(**options)
    fit.last.unlink()
    _, _, stopped = fit(SendSignal(signal.SIGTERM, batch=2), **options)
    resumed, trainer, _ = fit(**options)
    assert stopped and trainer.global_step == reference.global_step
    assert same(undisturbed_model, resumed)


class Batches(pl.Callback):
    """Keeps every training batch, and the training loader as others see it."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch[0].sum().item())
        self.loader = trainer.train_dataloader


def test_a_model_that_is_to_overfit_one_batch_gets_the_same_in_each_epoch(fit):
    batches = Batches()
    fit(batches, overfit_batches=1)
    assert len(batches.seen) == 3 and len(set(batches.seen)) == 1


def test_the_loader_that_is_followed_is_still_a_loader_of_its_own_class(fit, small_data, monkeypatch):
    class Loader(DataLoader):
        def __init__(self, rows, note):
            super().__init__(rows, batch_size=4)
            self.note = note

    made = []

    def train_dataloader(self):
        made.append(Loader(self.samples, "mine"))
        return made[-1]

    monkeypatch.setattr(small_data, "train_dataloader", train_dataloader)
    monkeypatch.setenv("PL_SEED_WORKERS", "1")  # put back afterwards; what sets it is the seeding
    monkeypatch.setattr(pl, "seed_everything", partial(pl.seed_everything, workers=True))
    batches = Batches()
    fit(batches)
    (loader,) = made
    assert batches.loader is loader and isinstance(loader, Loader) and loader.note == "mine"
    assert loader.worker_init_fn is not None  # Lightning's, for the seeds of workers


def test_a_copy_of_the_followed_loader_is_a_plain_one(small_data):
    loader = DataLoader(small_data().samples, 8)
    follow(loader, Continuation())
    follow(loader, Continuation())  # a second follower takes the first one's place
    for other in (copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert type(other) is DataLoader
        assert torch.equal(next(iter(other))[0], next(iter(loader))[0])


def test_the_handlers_of_before_are_back_afterwards(fit):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    fit(SendSignal(signal.SIGTERM, batch=2))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 7:
            raise RuntimeError("the user's code")


def test_a_failure_leaves_the_last_good_checkpoint(fit):
    with pytest.raises(RuntimeError, match="the user's code"):
        fit(Fails())
    assert saved_step(fit.last) == 5


def test_a_second_sigint_is_immediate():
    with StopRequest() as request:
        request.training = True
        os.kill(os.getpid(), signal.SIGINT)
        assert request.received is signal.SIGINT and not request.at_once
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert request.at_once


def test_a_second_sigterm_changes_nothing():
    with StopRequest() as request:
        request.training = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received is signal.SIGTERM and not request.at_once


def test_a_cut_off_checkpoint_is_explained(fit):
    fit()
    content = fit.last.read_bytes()
    fit.last.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UsageError, match=r"last\.ckpt is damaged and cannot be read: .*\. The run was left as it was\."
    ):
        saved_step(fit.last)


def test_a_file_that_is_no_checkpoint_is_explained(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="is no checkpoint of a run: it lacks global_step, loops, state_dict"):
        saved_step(tmp_path / "last.ckpt")


def test_what_is_drawn_undisturbed_was_never_drawn():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = snapshot()
    expected = draw()
    restore(state)
    with undisturbed():
        draw()
    assert draw() == expected


def test_lightning_is_quiet_only_for_a_while():
    logger = logging.getLogger("pytorch_lightning")
    before = (logger.handlers, logger.propagate)
    with quiet_lightning():
        assert (logger.handlers, logger.propagate) != before
    assert (logger.handlers, logger.propagate) == before
