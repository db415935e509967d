"""GradlabLogger inside a real Trainer: what is logged reaches the one event file, and nothing stops the training."""

import warnings
from argparse import Namespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.data import DataLoader, TensorDataset

from gradlab.events import EventWriter, event_files, read_events
from gradlab.lightning.logger import GradlabLogger
from gradlab.sinks import JsonlSink


class Regression(pl.LightningModule):
    def __init__(self, width=4, rate=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def loss(self, batch):
        return self.layer(batch[0]).square().mean()

    def training_step(self, batch):
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.rate)


def loader():
    return DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=4)


def fit(logger, tmp_path, **options):
    trainer = pl.Trainer(
        logger=logger,
        max_epochs=3,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        trainer.fit(Regression(), loader(), loader())
    return trainer


@pytest.fixture
def writer(tmp_path):
    writer = EventWriter(tmp_path / "tb")
    yield writer
    writer.close()


def series(writer):
    """{tag: {step: value}} of the native scalars."""
    writer.flush()
    found = {}
    for one in read_events(writer.path):
        if one.plugin_name == "scalars":
            found.setdefault(one.tag, {})[one.step] = one.value
    return found


def test_a_fit_logs_into_the_one_event_file(writer, tmp_path):
    jsonl = JsonlSink(tmp_path / "metrics.jsonl")
    logger = GradlabLogger(writer, save_dir=tmp_path, jsonl=jsonl)
    trainer = fit(logger, tmp_path, callbacks=[LearningRateMonitor(), ModelCheckpoint(monitor="val/loss")])
    found = series(writer)
    assert set(found) == {"train/loss_step", "train/loss_epoch", "val/loss", "epoch", "lr-SGD"}
    assert list(found["train/loss_step"]) == list(range(12))
    assert list(found["train/loss_epoch"]) == [3, 7, 11]
    assert list(found["val/loss"].values())[-1] == pytest.approx(trainer.callback_metrics["val/loss"].item())
    assert set(found["epoch"].values()) == {0.0, 1.0, 2.0}
    assert event_files(tmp_path / "tb") == [writer.path]
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 1
    jsonl.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("val/loss") == 3


def test_hyperparameters_reach_the_hparams_tab_and_the_text_tab(writer, tmp_path):
    fit(GradlabLogger(writer), tmp_path, enable_checkpointing=False)
    found = {one.tag: one for one in read_events(writer.path)}
    session = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_start_info"].content)
    assert {name: value.number_value for name, value in session.session_start_info.hparams.items()} == {
        "width": 4,
        "rate": 0.1,
    }
    assert found["hyperparameters"].value.item().decode() == (
        "| setting | value |\n|---|---|\n| width | `4` |\n| rate | `0.1` |"
    )


def test_hyperparameters_that_come_again_are_still_shown_as_text(writer):
    logger = GradlabLogger(writer)
    logger.log_hyperparams({"a": 1})
    logger.log_hyperparams(Namespace(b="x|y"))
    logger.log_hyperparams(None)
    writer.flush()
    values = list(read_events(writer.path))
    assert [one.tag for one in values] == ["_hparams_/session_start_info", "hyperparameters", "hyperparameters"]
    assert "| b | x&#124;y |" in values[-1].value.item().decode()


def test_folders_are_those_that_lightning_expects(writer, tmp_path):
    logger = GradlabLogger(writer, save_dir=tmp_path, name="n", version="v")
    assert (logger.save_dir, logger.name, logger.version) == (str(tmp_path), "n", "v")
    assert (logger.root_dir, logger.log_dir) == (str(tmp_path / "n"), str(tmp_path / "n" / "v"))
    assert logger.experiment.path == writer.path
    nowhere = GradlabLogger(writer)
    assert (nowhere.save_dir, nowhere.root_dir, nowhere.log_dir) == (None, None, None)


def test_tensors_and_nested_metrics_are_numbers(writer):
    GradlabLogger(writer).log_metrics({"a": torch.tensor([2.0]), "group": {"b": 1, "c": True}})
    assert series(writer) == {"a": {0: 2.0}, "group/b": {0: 1.0}, "group/c": {0: 1.0}}


def test_a_metric_that_goes_back_is_left_out_with_one_warning(writer):
    logger = GradlabLogger(writer)
    logger.log_metrics({"x": 1, "epoch": 0}, 5)
    with pytest.warns(UserWarning, match="'x' was logged at step 4 after step 5 and is left out") as caught:
        logger.log_metrics({"x": 2, "epoch": 0, "y": 3}, 4)
        logger.log_metrics({"x": 2, "epoch": 0}, 4)
    assert len(caught) == 1
    assert series(writer) == {"x": {5: 1.0}, "epoch": {5: 0.0}, "y": {4: 3.0}}


def test_a_file_that_fails_is_one_warning_and_the_fit_goes_on(writer, tmp_path):
    writer.close()
    with pytest.warns(UserWarning, match="the logger was switched off: .* is closed") as caught:
        trainer = fit(GradlabLogger(writer), tmp_path, enable_checkpointing=False)
    assert trainer.global_step == 12
    assert sum("switched off" in str(one.message) for one in caught) == 1


def test_other_ranks_write_nothing(writer, monkeypatch):
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = GradlabLogger(writer)
    logger.log_metrics({"x": 1}, 0)
    logger.log_hyperparams({"x": 1})
    logger.experiment.scalars({"x": 1}, 0)
    assert series(writer) == {}
