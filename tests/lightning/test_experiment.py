"""`self.logger.experiment` of a GradlabLogger: TensorBoard reads what a SummaryWriter would have written."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.data import DataLoader

from gradlab.errors import EventError
from gradlab.events import EventWriter, event_files, read_events
from gradlab.lightning.logger import GradlabLogger


@pytest.fixture
def writer(tmp_path):
    writer = EventWriter(tmp_path / "ours")
    yield writer
    writer.close()


@pytest.fixture
def experiment(writer):
    return GradlabLogger(writer).experiment


@pytest.fixture
def summary_writer(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "theirs") as made:
        yield made


def events(folder):
    """The events of the one file in a folder, as TensorBoard parses them, with no time."""
    (path,) = folder.glob("events.out.tfevents.*")
    found = [event for event in LegacyEventFileLoader(str(path)).Load() if not event.HasField("file_version")]
    for event in found:
        event.ClearField("wall_time")
    return found


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


def figure():
    from matplotlib.figure import Figure

    made = Figure(figsize=(1, 1))
    made.add_subplot().plot([1, 2], [3, 4])
    return made


RAMP = torch.linspace(0, 1, 48)
CALLS = {
    "scalar": ("add_scalar", "loss", 0.5, 3),
    "tensor": ("add_scalar", "loss", torch.tensor(2.5, requires_grad=True), 3),
    "one number": ("add_scalar", "loss", torch.tensor([2.5]), 3),
    "numpy": ("add_scalar", "loss", np.float64(1.5), np.int64(3)),
    "nan": ("add_scalar", "loss", float("nan"), 3),
    "infinite": ("add_scalar", "loss", torch.tensor(float("inf")), 3),
    "no step": ("add_scalar", "loss", 1),
    "odd tag": ("add_scalar", "größe / 100 %", 1.0, 2),
    "histogram": ("add_histogram", "weights", torch.randn(100), 4),
    "histogram of numpy": ("add_histogram", "weights", np.arange(9.0), 4, "auto"),
    "text": ("add_text", "note", "**bold** größe\nline", 5),
    "image": pytest.param(("add_image", "picture", RAMP.reshape(3, 4, 4), 6), marks=needs("PIL")),
    "gray image": pytest.param(("add_image", "picture", RAMP.reshape(6, 8).numpy(), 6, None, "HW"), marks=needs("PIL")),
    "images": pytest.param(("add_images", "pictures", RAMP.reshape(2, 3, 2, 4), 6), marks=needs("PIL")),
    "curve": ("add_pr_curve", "curve", torch.tensor([0, 1, 1]), torch.tensor([0.2, 0.6, 0.9]), 7),
    "mesh": ("add_mesh", "mesh", RAMP.reshape(1, 16, 3)),
    "layout": ("add_custom_scalars", {"a": {"b": ["Multiline", ["c"]]}}),
    "tensor as it is": ("add_tensor", "raw", torch.arange(4.0), 1),
    "graph": ("add_graph", torch.nn.Linear(2, 3), torch.ones(1, 2)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # of add_graph's own
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_added_is_written_as_a_summary_writer_writes_it(experiment, summary_writer, tmp_path, call):
    name, *arguments = call
    for one in (experiment, summary_writer):
        torch.manual_seed(1)
        getattr(one, name)(*arguments)
        one.flush()
    ours, theirs = events(tmp_path / "ours"), events(tmp_path / "theirs")
    assert theirs and list(map(repr, ours)) == list(map(repr, theirs))
    assert len(event_files(tmp_path / "ours")) == 1


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_a_figure_is_a_picture(experiment, writer):
    experiment.add_figure("drawn", figure(), 2)
    writer.flush()
    (one,) = read_events(writer.path)
    assert (one.tag, one.step) == ("drawn", 2)


def test_several_scalars_are_tags_of_the_one_file(experiment, writer):
    experiment.add_scalars("loss", {"train": torch.tensor(1.0), "val": 2}, 5, walltime=12.5)
    writer.flush()
    found = [(one.tag, one.step, one.wall_time, one.value) for one in read_events(writer.path)]
    assert found == [("loss/train", 5, 12.5, 1.0), ("loss/val", 5, 12.5, 2.0)]


def test_hparams_are_the_settings_of_the_run_where_it_has_none(experiment, writer):
    experiment.add_hparams({"lr": 0.1, "name": "a"}, {"final": 3.0})
    writer.flush()
    found = {one.tag: one for one in read_events(writer.path)}
    session = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_start_info"].content)
    assert {name for name in session.session_start_info.hparams} == {"lr", "name"}
    assert found["final"].value == 3.0
    GradlabLogger(writer).log_hyperparams({"later": 1})  # TensorBoard would keep the first and show neither right
    writer.flush()
    assert sum(one.tag == "_hparams_/session_start_info" for one in read_events(writer.path)) == 1


def test_hparams_of_a_run_that_has_settings_are_text(experiment, writer):
    GradlabLogger(writer).log_hyperparams({"lr": 0.1})
    experiment.add_hparams({"lr": 0.2}, {"final": 3.0}, run_name="second")
    writer.flush()
    found = {one.tag: one for one in read_events(writer.path)}
    assert "| lr | `0.2` |" in found["second/text_summary"].value.item().decode()
    assert found["final"].value == 3.0


def test_steps_may_come_in_any_order(experiment, writer):
    for step in (5, 3, 5):
        experiment.add_scalar("loss", step, step)
    writer.flush()
    assert [one.step for one in read_events(writer.path)] == [5, 3, 5]


def test_the_methods_of_the_event_file_are_there_too(experiment, writer):
    experiment.scalars({"loss": 1.0}, 1)
    experiment.text("note", "hello", 1)
    experiment.flush()
    assert [one.tag for one in read_events(writer.path)] == ["loss", "note"]
    assert experiment.get_logdir() == experiment.log_dir == str(writer.path.parent)


def test_closing_it_leaves_the_file_of_the_run_open(experiment, writer):
    with experiment:
        experiment.add_scalar("loss", 1.0, 1)
    experiment.close()
    experiment.add_scalar("loss", 2.0, 2)
    writer.flush()
    assert not writer.closed and [one.value for one in read_events(writer.path)] == [1.0, 2.0]


def test_what_nobody_has_says_so_with_the_nearest_name(experiment):
    with pytest.raises(AttributeError) as caught:
        experiment.add_scaler("loss", 1.0, 1)
    assert str(caught.value) == (
        "the experiment of a GradlabLogger has no 'add_scaler'. Did you mean 'add_scalar' or 'add_scalars' "
        "or 'add_custom_scalars'?"
    )
    assert not hasattr(experiment, "log_artifact")


def test_a_package_that_is_missing_is_named(experiment, monkeypatch):
    experiment.add_scalar("loss", 1.0, 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EventError, match=r"^add_image needs PIL, which is not installed: pip install pillow\.$"):
        experiment.add_image("picture", RAMP.reshape(3, 4, 4), 1)


def test_a_file_that_fails_is_one_warning(experiment, writer):
    writer.close()
    with pytest.warns(UserWarning, match="the logger was switched off: .* is closed") as caught:
        for step in range(3):
            experiment.add_scalar("loss", 1.0, step)
    assert len(caught) == 1
    experiment.flush()


class Logs(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        self.logger.experiment.add_scalar("mine", loss, self.global_step)
        self.logger.experiment.add_histogram("weight", self.layer.weight, self.global_step)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")
def test_a_module_adds_to_the_file_while_it_trains(writer, tmp_path):
    trainer = pl.Trainer(
        logger=GradlabLogger(writer),
        max_epochs=1,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Logs(), DataLoader(torch.randn(12, 4), batch_size=4))
    writer.flush()
    found = list(read_events(writer.path))
    values = {tag: [one.value for one in found if one.tag == tag] for tag in ("loss", "mine")}
    assert values["mine"] == values["loss"] and len(values["mine"]) == 3
    assert [one.step for one in found if one.tag == "weight"] == [0, 1, 2]


def test_tensorboard_is_imported_only_where_something_is_added():
    program = """
import sys, tempfile
from gradlab.events import EventWriter
from gradlab.lightning.logger import GradlabLogger
experiment = GradlabLogger(EventWriter(tempfile.mkdtemp())).experiment
experiment.scalars({"a": 1.0}, 0)
experiment.flush()
assert "torch.utils.tensorboard" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
