"""Lightning's own demo modules under all kinds of loops: its numbers, and training that is the same bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, DemoModel, ManualOptimBoringModel
from pytorch_lightning.demos.lstm import LightningLSTM, SimpleLSTM
from pytorch_lightning.demos.transformer import LightningTransformer, Transformer
from torch import Tensor, nn

from gradlab import Tap
from gradlab.lightning.callback import GradlabCallback
from gradlab.sinks import MemorySink

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers


class SeveralOptimizers(ManualOptimBoringModel):
    """The demo of manual optimization with a second layer and a second optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(2, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        loss = self.second(self.layer(batch)).square().mean()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.layer.parameters(), 0.1), torch.optim.Adam(self.second.parameters())]


class DemoTransformer(LightningTransformer):
    """The demo of a language model, on tokens that need no download."""

    def __init__(self) -> None:
        super().__init__(vocab_size=20)
        self.model = Transformer(vocab_size=20, ninp=16, nhid=16)

    def prepare_data(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        tokens = torch.randint(0, 20, (12, 9), generator=torch.Generator().manual_seed(1))
        return torch.utils.data.DataLoader([(row[:-1], row[1:]) for row in tokens], batch_size=2)


class DemoLstm(LightningLSTM):
    """The demo of truncated backpropagation: the hidden state goes on from batch to batch."""

    def __init__(self) -> None:
        super().__init__(vocab_size=20)
        self.model = SimpleLSTM(vocab_size=20, ninp=16, nhid=16, nlayers=2)

    def prepare_data(self) -> None:
        pass

    train_dataloader = DemoTransformer.train_dataloader


class DemoLayer(DemoModel):
    """The demo of one layer and Adam."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(
            torch.randn(12, 32, generator=torch.Generator().manual_seed(1)), batch_size=2
        )


class GradientsBeforeStep(pl.Callback):
    """Notes the norms of the gradients as Lightning gives them to an optimizer, before clipping."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.norms.append({n: p.grad.double().norm().item() for n, p in pl_module.named_parameters()})


LOOPS: dict[str, tuple[type, dict[str, Any]]] = {
    "automatic": (BoringModel, {}),
    "accumulation": (BoringModel, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
    "bf16": (BoringModel, {"precision": "bf16-mixed"}),
    "manual": (ManualOptimBoringModel, {}),
    "several": (SeveralOptimizers, {}),
    "transformer": (DemoTransformer, {"gradient_clip_val": 0.1}),
    "lstm": (DemoLstm, {}),
    "layer": (DemoLayer, {}),
}


def fit(cls: Callable[[], pl.LightningModule], folder: Path, *callbacks: pl.Callback, **options: Any) -> list[Tensor]:
    """Train six batches; the weights."""
    torch.manual_seed(0)
    model = cls()
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    limits = {"max_epochs": 1, "limit_train_batches": 6, "limit_val_batches": 0, "accelerator": "cpu"}
    pl.Trainer(**limits, **off, default_root_dir=folder, callbacks=list(callbacks), **options).fit(model)
    return list(model.parameters())


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_of_all_kinds(kind: str, tmp_path: Path) -> None:
    cls, options = LOOPS[kind]
    truth, sink = GradientsBeforeStep(), MemorySink()
    weights = fit(cls, tmp_path, truth, GradlabCallback(sinks=[sink], strict=True), **options)
    assert all(torch.equal(a, b) for a, b in zip(weights, fit(cls, tmp_path, **options), strict=True))
    logged = [dict(frame["weight_grad.norm"].items()) for frame in sink.frames]
    # Of two optimizers Lightning tells one by one, gradlab of the step that both make.
    expected = truth.norms[1::2] if kind == "several" else truth.norms
    assert len(logged) == len(expected) == (2 if kind == "accumulation" else 6)
    for found, norms in zip(logged, expected, strict=True):
        assert found == pytest.approx(norms, rel=1e-5)


class Gan(pl.LightningModule):
    """Two networks and two optimizers by hand, a step every second batch; notes the gradients that each step uses."""

    def __init__(self, order: str, *, toggles: bool, clip: tuple[float, str]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        self.d = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
        self.order, self.toggles, self.clip = order, toggles, clip
        self.truth: list[dict[str, dict[str, float]]] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.g.parameters(), 0.1), torch.optim.Adam(self.d.parameters(), 0.01)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.randn(8, 4, 4), batch_size=None)

    def losses(self, who: str, real: Tensor) -> Tensor:
        fake = self.g(torch.randn(4, 3))
        if who == "g":
            return (self.d(fake) - 1).square().mean()
        return (self.d(real) - 1).square().mean() + self.d(fake.detach()).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        now: dict[str, dict[str, float]] = {"weight_grad.norm": {}, "weight_grad.norm@clipped": {}}
        for who in self.order:
            optimizer, net = self.optimizers()["gd".index(who)], getattr(self, who)
            if self.toggles:
                self.toggle_optimizer(optimizer)
            if batch_idx % 2 == 0:
                optimizer.zero_grad()
            self.manual_backward(self.losses(who, batch) / 2)
            if batch_idx % 2 == 1:
                now["weight_grad.norm"] |= self.norms(who, net)
                self.clip_gradients(optimizer, *self.clip)
                now["weight_grad.norm@clipped"] |= self.norms(who, net)
                optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)
        if batch_idx % 2 == 1:
            self.truth.append(now)

    def norms(self, who: str, net: nn.Module) -> dict[str, float]:
        return {f"{who}.{name}": p.grad.double().norm().item() for name, p in net.named_parameters()}


@pytest.mark.parametrize("order", ["gd", "dg"])
@pytest.mark.parametrize("toggles", [False, True])
@pytest.mark.parametrize("clip", [(0.05, "norm"), (0.01, "value")])
def test_two_optimizers_by_hand_that_reach_each_others_gradients(
    order: str, toggles: bool, clip: tuple[float, str], tmp_path: Path
) -> None:
    """The step of one leaves gradients behind in the other's parameters, which that one's own step has not used."""

    def make() -> Gan:
        return Gan(order, toggles=toggles, clip=clip)

    sink, taps = MemorySink(), [Tap("*", of="weight_grad", stage=["final", "clipped"]), Tap("*", of="output_grad")]
    models: list[Gan] = []
    watched = fit(lambda: models.append(make()) or models[0], tmp_path, GradlabCallback(taps=taps, sinks=[sink]))
    assert all(torch.equal(a, b) for a, b in zip(watched, fit(make, tmp_path), strict=True))
    assert len(sink.frames) == len(models[0].truth) == 3
    for frame, truth in zip(sink.frames, models[0].truth, strict=True):
        for metric, expected in truth.items():
            assert dict(frame[metric].items()) == pytest.approx(expected, rel=1e-5)
        assert {"g.2", "d.2", "d.2#2"} <= set(frame["output_grad.norm"].schema.sites)


class Lbfgs(BoringModel):
    """An optimizer that runs its closure several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


def test_an_optimizer_that_runs_its_closure_several_times_is_read_after_the_last(tmp_path: Path) -> None:
    class LastOfBatch(GradientsBeforeStep):
        def on_train_batch_start(self, *_: Any) -> None:
            self.first = len(self.norms)

        def on_train_batch_end(self, *_: Any) -> None:
            assert len(self.norms) > self.first + 1
            del self.norms[self.first : -1]

    truth, sink = LastOfBatch(), MemorySink()
    weights = fit(Lbfgs, tmp_path, truth, GradlabCallback(sinks=[sink], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, fit(Lbfgs, tmp_path), strict=True))
    logged = [dict(frame["weight_grad.norm"].items()) for frame in sink.frames]
    assert len(logged) == len(truth.norms) == 6
    for found, norms in zip(logged, truth.norms, strict=True):
        assert found == pytest.approx(norms, rel=1e-5)


def test_a_callback_without_sinks_writes_an_event_file_of_its_own(tmp_path: Path) -> None:
    fit(BoringModel, tmp_path, GradlabCallback(strict=True))
    (file,) = tmp_path.rglob("events.out.*")
    assert file.parent == tmp_path / "gradlab"


def test_a_callback_is_copied_without_the_monitor_of_its_last_fit(tmp_path: Path) -> None:
    callback = GradlabCallback(sinks=[MemorySink()], taps=[Tap("*", of="weight_grad")])
    fit(BoringModel, tmp_path, callback)
    assert callback.monitor is not None
    copied = copy.deepcopy(callback)
    assert copied.monitor is None and copied.findings == []
    assert copied.taps == callback.taps
