"""Batches in memory: the same under a seed, another order each epoch, nothing drawn from the global generator."""

import copy
import pickle
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.warnings import PossibleUserWarning

from gradlab.data import Bytes, Digits, Synthetic
from gradlab.data.in_memory import EpochShuffle, InMemory
from gradlab.errors import GradlabError, UsageError
from gradlab.models import MLP

MAKERS = {
    "digits": lambda **given: Digits(**given),
    "bytes": lambda **given: Bytes(max_bytes=40_000, **given),
    "synthetic": lambda **given: Synthetic(**given),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request):
    return request.param


def same(one, two) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_the_same_seed_gives_the_same_batches_whatever_the_global_generator(make):
    first = list(make(seed=3).train_dataloader())
    torch.manual_seed(99)
    assert same(first, list(make(seed=3).train_dataloader()))


def test_another_seed_gives_other_batches(make):
    assert not same(list(make(seed=3).train_dataloader()), list(make(seed=4).train_dataloader()))


def test_loading_and_going_through_draws_no_global_random_number(make):
    before = torch.get_rng_state()
    data = make()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_batches_are_full_and_validation_sees_every_sample_once_in_order(make):
    data = make(batch_size=32)
    assert {len(x) for x, _ in data.train_dataloader()} == {32}
    inputs, targets = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    assert torch.equal(inputs, data.val_data.inputs)
    assert torch.equal(targets, data.val_data.targets)


def test_an_epoch_uses_no_sample_twice():
    data = InMemory(torch.arange(20), torch.arange(20))
    order = list(EpochShuffle(data, seed=0))
    assert sorted(order) == list(range(20)) != order


def test_each_pass_is_the_next_epoch_and_any_epoch_can_be_had_again():
    shuffle = EpochShuffle(InMemory(torch.arange(20), torch.arange(20)), seed=5)
    first, second = list(shuffle), list(shuffle)
    assert first != second
    shuffle.set_epoch(0)
    assert list(shuffle) == first
    shuffle.set_epoch(1)
    assert list(shuffle) == second


def test_lightning_gives_each_epoch_its_order_also_after_a_resume(tmp_path):
    whole, resumed = _Recorder(), _Recorder()
    _trainer(tmp_path, whole, max_epochs=3).fit(MLP([4]), datamodule=Digits(batch_size=500))
    first = _trainer(tmp_path, max_epochs=1)
    first.fit(MLP([4]), datamodule=Digits(batch_size=500))
    first.save_checkpoint(tmp_path / "one.ckpt")
    again = _trainer(tmp_path, resumed, max_epochs=3)
    again.fit(MLP([4]), datamodule=Digits(batch_size=500), ckpt_path=tmp_path / "one.ckpt")
    assert len(whole.batches) == 6  # two batches an epoch
    assert not same(whole.batches[:2], whole.batches[2:4])
    assert same(whole.batches[2:], resumed.batches)


class _Recorder(pl.Callback):
    def __init__(self) -> None:
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch)


def _trainer(folder, *callbacks, **options) -> pl.Trainer:
    warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, few batches: meant so
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's, with torch 2.13
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False)
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **quiet, **options)


def test_a_data_module_can_be_copied_and_pickled(make):
    data = make()
    data.setup()
    batches = list(data.train_dataloader())
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert same(batches, list(twin.train_dataloader()))


def test_input_shape_is_that_of_one_input(make):
    data = make()
    assert data.input_shape == tuple(next(iter(data.train_dataloader()))[0].shape[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": 1.5}, "val_fraction must lie between 0 and 1, as 0.2 for a fifth, got 1.5."),
        ({"val_fraction": 20}, "val_fraction must lie between 0 and 1, as 0.2 for a fifth, got 20. Did you mean 0.2?"),
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, as 0.2 for a fifth, got 0.0."),
        ({"val_fraction": "half"}, "val_fraction must lie between 0 and 1, as 0.2 for a fifth, got 'half'."),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, got 0."),
        ({"batch_size": "64"}, "batch_size must be a whole number from 1, got '64'."),
        ({"seed": -1}, "seed must be a whole number from 0, got -1."),
        ({"num_workers": -2}, "num_workers must be a whole number from 0, got -2."),
    ],
)
def test_wrong_arguments_are_named_with_what_was_seen(make, arguments, message):
    with pytest.raises(UsageError) as error:
        make(**arguments)
    assert str(error.value).partition(": ")[2] == message


def test_a_batch_larger_than_the_data_is_refused_with_the_largest():
    with pytest.raises(GradlabError, match=r"Digits: batch_size=5000 is more than the 1438 .* batch_size is 1438\."):
        Digits(batch_size=5000).train_dataloader()
