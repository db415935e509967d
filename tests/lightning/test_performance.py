"""The scalars `perf/*`, profile windows and running out of memory, under Lightning."""

import json
import time

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gradlab.errors import GradlabWarning
from gradlab.lightning.callback import GradlabCallback
from gradlab.profiling.options import Profile
from gradlab.sinks import MemorySink

MS = 0.001
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning's, with torch 2.13
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]


class Sleeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(8 * MS)
        return grad


class Data(Dataset):
    def __len__(self):
        return 8 * 12

    def __getitem__(self, index):
        if index % 8 == 0:
            time.sleep(2 * MS)
        return torch.ones(16), index % 4


class Slow(pl.LightningModule):
    """Sleeps in each phase for a time of its own."""

    def __init__(self, *, manual=False, out_of_memory_at=None, validation_ms=5):
        super().__init__()
        self.validation_ms = validation_ms
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.automatic_optimization = not manual
        self.out_of_memory_at = out_of_memory_at

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        time.sleep(3 * MS)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch, batch_idx):
        time.sleep(4 * MS)
        x, y = batch
        if batch_idx == self.out_of_memory_at:
            self.body.register_forward_hook(self.runs_out)
        loss = F.cross_entropy(self.head(Sleeps.apply(self.body(x))), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    @staticmethod
    def runs_out(module, args, output):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ..."
        )

    def validation_step(self, batch, batch_idx):
        time.sleep(self.validation_ms * MS)

    def configure_optimizers(self):
        return SlowSGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(Data(), batch_size=8)


class SlowSGD(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        time.sleep(6 * MS)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)
        return loss


class SlowCallback(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(5 * MS)


def fit(model, tmp_path, *, callbacks=(), sinks=None, profile=None, val=False, **options):
    sink = MemorySink()
    gradlab = GradlabCallback(sinks=[sink] if sinks is None else sinks, profile=profile, strict=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[gradlab, *callbacks],
        **({"max_epochs": 1} | options),
    )
    trainer.fit(model, val_dataloaders=DataLoader(Data(), batch_size=8) if val else None)
    return trainer, gradlab, sink


def logged(sink):
    values = {}
    for _, scalars in sink.logged:
        values.update({tag.removeprefix("perf/"): value for tag, value in scalars.items() if tag.startswith("perf/")})
    return values


@pytest.mark.parametrize("manual", [False, True])
def test_each_phase_is_seen_and_all_add_up(tmp_path, manual):
    users = SimpleProfiler()
    trainer, _, sink = fit(Slow(manual=manual), tmp_path, callbacks=[SlowCallback()], profiler=users, max_epochs=2)
    values = logged(sink)
    asked_for = {"data": 2, "h2d": 3, "forward": 4, "backward": 8, "optimizer": 6, "callbacks": 5}
    for phase, milliseconds in asked_for.items():
        assert values[f"{phase}_ms"] >= milliseconds, (phase, values)
    total = sum(values[f"{phase}_ms"] for phase in (*asked_for, "other"))
    assert total == pytest.approx(values["step_ms"], rel=1e-6) and "loss_ms" not in values
    assert values["samples_per_second"] == pytest.approx(8 / (values["step_ms"] * MS), rel=1e-6)
    assert values["flops_per_step"] == 2 * 8 * (16 * 16 + 16 * 4) * 2 + 2 * 8 * 16 * 4
    assert trainer.profiler is users and users.recorded_durations["run_training_batch"]
    assert "backward" not in vars(trainer.strategy)


def test_accumulated_batches_are_one_step_and_validation_is_none(tmp_path):
    options = {"accumulate_grad_batches": 3, "val_check_interval": 6, "limit_val_batches": 2, "max_epochs": 2}
    _, gradlab, sink = fit(Slow(validation_ms=300), tmp_path, val=True, **options)
    values = logged(sink)
    assert values["forward_ms"] >= 3 * 4
    assert values["samples_per_second"] == pytest.approx(24 / (values["step_ms"] * MS), rel=1e-6)
    assert values["step_ms"] < 2 * 300
    assert gradlab.profiler.windows == []


def test_a_window_spans_whole_batches_and_its_verdict_is_a_finding(tmp_path):
    _, gradlab, sink = fit(Slow(), tmp_path, profile=Profile(wait=2, warmup=1, active=2))
    (window,) = gradlab.profiler.windows
    summary = json.loads((window / "summary.json").read_text())
    assert [row["step"] for row in summary["steps"]] == [3, 4]
    assert summary["mean"]["data_ms"] >= 2 and summary["mean"]["ms"] >= 2 + 3 + 4 + 8 + 6
    assert {"body.0", "head"} <= {row["name"] for row in summary["modules"]}
    (finding,) = sink.findings
    assert finding.kind == "profile" and finding.severity == "info"
    assert (finding.first_step, finding.last_step) == (3, 4)
    assert finding.message.startswith("the profile of steps 3 to 4 is ")


def test_a_run_of_one_batch_says_that_there_was_no_window(tmp_path):
    with pytest.warns(
        GradlabWarning, match=r"training ended after 1 step, and the first window begins after 7 \(wait=5"
    ):
        fit(Slow(), tmp_path, profile=Profile(), fast_dev_run=True)


def test_without_a_sink_nothing_is_measured(tmp_path):
    _, gradlab, _ = fit(Slow(), tmp_path, sinks=[])
    assert gradlab.monitor.performance is None and list(tmp_path.iterdir()) == []


def test_running_out_of_memory_leaves_a_table_and_a_finding(tmp_path):
    model = Slow(out_of_memory_at=4)
    sink = MemorySink()
    with pytest.raises(torch.OutOfMemoryError):
        fit(model, tmp_path, sinks=[sink], profile=Profile(wait=2, warmup=0, active=50))
    (found,) = (finding for finding in sink.findings if finding.kind == "out_of_memory")
    assert found.site == "body" and found.severity == "error"
    weights = 4 * (16 * 16 + 16 + 16 * 4 + 4)
    assert found.evidence == {"parameters": weights, "gradients": weights, "optimizer_state": 0}
    assert "the forward of body (Sequential) asked for 20 MiB; held by parameters 1.33 KiB" in found.message
    table = json.loads((tmp_path / "oom_000004" / "oom.json").read_text())
    assert table["module"] == "body" and table["asked_bytes"] == 20 * 2**20 and table["modules"]["body.0"] == 8 * 272
    assert len(list((tmp_path / "profile").glob("step_*"))) == 1  # the window under way is kept
    assert sink.frames  # and so are the frames up to the last step
