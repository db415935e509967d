"""Every precision of Lightning and Fabric: numbers without the loss scale, and updates that a GradScaler leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_fabric
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import MixedPrecision as FabricMixedPrecision
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from two_ranks import Numbers, numbers

import gradlab
from gradlab import Tap
from gradlab.lightning.callback import GradlabCallback
from gradlab.sinks import MemorySink

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
TAPS = [
    Tap("*", of="weight_grad", stage=["final", "clipped"]),
    Tap("*", of=["weight", "update", "output", "output_grad"]),
]


def scaler() -> torch.amp.GradScaler:
    """Overflows in the first step, and again after every two good ones."""
    return torch.amp.GradScaler(
        "cpu", init_scale=2.0**30, backoff_factor=2.0**-15, growth_factor=2.0**15, growth_interval=2
    )


def mixed_16() -> MixedPrecision:
    """Lightning makes `16-mixed` on the CPU to `bf16-mixed` without a word; this is the real one."""
    return MixedPrecision("16-mixed", "cpu", scaler())


class Model(BoringModel):
    """Two layers, and a batch of its own for every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2))

    def train_dataloader(self) -> Any:
        data = torch.randn(7, 4, 32, generator=torch.Generator().manual_seed(1))
        return torch.utils.data.DataLoader(data, batch_size=None)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def norms(tensors: dict[str, Tensor]) -> dict[str, float]:
    """In float64."""
    return {name: tensor.detach().double().norm().item() for name, tensor in tensors.items()}


class Truth(pl.Callback):
    """What there is at each update, read by hooks of torch alone: one entry a step of the optimizer."""

    def __init__(self) -> None:
        self.found: Numbers = []
        self.steps: list[int] = []
        self.scale = 1.0
        self._tensors: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, module in pl_module.named_modules():
            if name:
                module.register_forward_hook(self.reader(name))
        parameters = dict(pl_module.named_parameters())

        def before(*_: Any) -> None:  # where there is a closure, no gradients are there yet
            self.old = {n: p.detach().clone() for n, p in parameters.items()}
            self.steps.append(trainer.global_step)

        def after(*_: Any) -> None:
            clipped = norms({n: p.grad for n, p in parameters.items()})
            update = norms({n: p.detach() - self.old[n] for n, p in parameters.items()})
            others = {"weight_grad.norm@clipped": clipped, "weight.norm": norms(self.old), "update.norm": update}
            self.found.append(self.now | others)

        trainer.optimizers[0].register_step_pre_hook(before)
        trainer.optimizers[0].register_step_post_hook(after)

    def reader(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            self._tensors[name] = output

        return hook

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        at_work = getattr(trainer.precision_plugin, "scaler", None)
        self.scale = at_work.get_scale() if at_work is not None else 1.0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.now = {
            "weight_grad.norm": norms({n: p.grad for n, p in pl_module.named_parameters()}),
            "output.norm": norms(self._tensors),
            "output_grad.norm": norms({n: t.grad.double() / self.scale for n, t in self._tensors.items()}),
        }


PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "16-mixed": lambda: {"plugins": [mixed_16()], "gradient_clip_val": 0.05},
    "16-mixed, by value": lambda: {
        "plugins": [mixed_16()],
        "gradient_clip_val": 0.01,
        "gradient_clip_algorithm": "value",
    },
    "bf16-mixed": lambda: {"precision": "bf16-mixed", "gradient_clip_val": 0.05},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "16-true": lambda: {"precision": "16-true"},
    "64-true": lambda: {"precision": "64-true", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}


def fit(folder: Path, *callbacks: pl.Callback, **options: Any) -> list[Tensor]:
    """Train seven batches; the weights."""
    model = Model()
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    limits = {"max_epochs": 1, "limit_val_batches": 0, "accelerator": "cpu"}
    pl.Trainer(**limits, **off, default_root_dir=folder, callbacks=list(callbacks), **options).fit(model)
    return list(model.parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers_are_those_of_the_same_rounded_computation(precision: str, tmp_path: Path) -> None:
    truth, sink = Truth(), MemorySink()
    weights = fit(tmp_path, truth, GradlabCallback(sinks=[sink], taps=TAPS, strict=True), **PRECISIONS[precision]())
    assert all(torch.equal(a, b) for a, b in zip(weights, fit(tmp_path, **PRECISIONS[precision]()), strict=True))
    found = numbers(sink.frames)
    assert [frame.step for frame in sink.frames] == truth.steps
    assert len(truth.steps) == (4 if "16-mixed" in precision and "bf" not in precision else 7)
    for got, want in zip(found, truth.found, strict=True):
        for metric, values in want.items():
            assert {site: got[metric].get(site) for site in values} == pytest.approx(values, rel=1e-5, abs=1e-12)


def test_updates_that_a_scaler_leaves_out_are_told(tmp_path: Path) -> None:
    sink = MemorySink()
    fit(tmp_path, GradlabCallback(sinks=[sink], taps=TAPS, strict=True), plugins=[mixed_16()])
    assert [frame.step for frame in sink.frames] == [1, 2, 4, 5]
    skipped = [(one.step, one.severity) for one in sink.findings if one.kind == "skipped_update"]
    assert skipped == [(0, "info"), (3, "info"), (6, "info")]


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "64-true"])
def test_fabric(precision: str) -> None:
    def train(*, is_watched: bool) -> tuple[list[Tensor], list[dict[str, float]], MemorySink]:
        plugin = FabricMixedPrecision("16-mixed", "cpu", scaler()) if precision == "16-mixed" else None
        options = {"precision": precision} if plugin is None else {"plugins": [plugin]}
        fabric = lightning_fabric.Fabric(accelerator="cpu", **options)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2))
        inner = torch.optim.SGD(net.parameters(), 0.1)
        model, optimizer = fabric.setup(net, inner)
        sink, truth = MemorySink(), []
        inner.register_step_pre_hook(lambda *_: truth.append(norms({n: p.grad for n, p in net.named_parameters()})))
        monitor = gradlab.watch(model, optimizer, taps=TAPS[:1], sinks=[sink], strict=True) if is_watched else None
        for step in range(7):
            optimizer.zero_grad()
            batch = torch.randn(4, 32, generator=torch.Generator().manual_seed(step))
            fabric.backward(model(batch).square().mean())
            optimizer.step()
        if monitor is not None:
            monitor.close()
        return list(net.parameters()), truth, sink

    weights, truth, sink = train(is_watched=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, train(is_watched=False)[0], strict=True))
    assert len(truth) == (4 if precision == "16-mixed" else 7)
    for got, want in zip(numbers(sink.frames), truth, strict=True):
        assert got["weight_grad.norm"] == pytest.approx(want, rel=1e-5)
    found = [one.evidence for one in sink.findings if one.kind == "skipped_update"]
    assert found == [{"updates": 1}] * (
        2 if precision == "16-mixed" else 0
    )  # the last one was left out after the last update


class Gan(pl.LightningModule):
    """Two networks by hand: Lightning updates the scale after the step of each, so that they have different ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.g, self.d = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.truth: Numbers = []

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.g.parameters(), 0.1), torch.optim.SGD(self.d.parameters(), 0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(
            torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(1)), batch_size=None
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        now: dict[str, dict[str, float]] = {"weight_grad.norm": {}, "output_grad.norm": {}}
        noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(batch_idx))
        for optimizer, net, name in zip(self.optimizers(), (self.g, self.d), "gd", strict=True):
            optimizer.zero_grad()
            seen = [self.g(noise)] if name == "g" else []
            seen.append(self.d(seen[0] if seen else batch))
            for tensor in seen:
                tensor.retain_grad()
            self.manual_backward((seen[-1] - float(name == "d")).square().mean())
            scale = self.trainer.precision_plugin.scaler.get_scale()
            now["weight_grad.norm"] |= norms({f"{name}.{n}": p.grad / scale for n, p in net.named_parameters()})
            gradients = dict(zip(("g", "d") if name == "g" else ("d",), (t.grad / scale for t in seen), strict=True))
            for site, norm in norms(gradients).items():  # the discriminator is called for both
                earlier = now["output_grad.norm"].get(site, 0.0)
                now["output_grad.norm"][site] = math.hypot(earlier, norm)
            optimizer.step()
        self.truth.append(now)


def test_two_optimizers_with_a_scale_each(tmp_path: Path) -> None:
    def train(*callbacks: pl.Callback) -> Gan:
        model = Gan()
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        growing = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 4.0, growth_interval=1))
        limits = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path}
        pl.Trainer(**limits, **off, plugins=[growing], callbacks=list(callbacks)).fit(model)
        return model

    sink, taps = MemorySink(), [Tap("*", of="weight_grad"), Tap("*", of="output_grad")]
    watched = train(GradlabCallback(sinks=[sink], taps=taps, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), train().parameters(), strict=True))
    assert len(sink.frames) == 6
    for got, want in zip(numbers(sink.frames), watched.truth, strict=True):
        for metric, values in want.items():
            assert {site: got[metric].get(site) for site in values} == pytest.approx(values, rel=1e-5)
