"""Lightning's own demo modules under all kinds of loops: its numbers, and training that is the same bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, ManualOptimBoringModel
from torch import Tensor, nn

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
}


def fit(cls: type, folder: Path, *callbacks: pl.Callback, **options: Any) -> list[Tensor]:
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


def test_a_callback_without_sinks_writes_an_event_file_of_its_own(tmp_path: Path) -> None:
    fit(BoringModel, tmp_path, GradlabCallback(strict=True))
    (file,) = tmp_path.rglob("events.out.*")
    assert file.parent == tmp_path / "gradlab"
