"""The Trainer with optimizers that step in the backward: GaLore and APOLLO layer by layer behind a dummy, and LOMO."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab.sinks import MemorySink

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs gradlab[integrations]"),
]
STEPS = 6


class Regression(nn.Module):
    """A model as the Trainer takes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Any = None) -> dict[str, Tensor]:
        return {"loss": self.net(x).square().mean()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[Any, list[str], MemorySink]:
    """Its callback, what is said, and the frames."""
    from transformers import Trainer, TrainingArguments

    from gradlab.integrations.huggingface import GradlabCallback

    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0
    )
    data = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "labels": 0} for i in range(64)]
    sink = MemorySink()
    taps = [gradlab.Tap("*", of=["weight_grad", "update"])]
    callback = GradlabCallback(taps=taps, sinks=[sink], strict=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler), callbacks=[callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return callback, [str(one.message) for one in caught if "gradlab" in str(one.message)], sink


def test_optimizers_behind_a_dummy_are_followed_in_the_backward(tmp_path: Path) -> None:
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    model = Regression()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    callback, lines, sink = train(model, LayerWiseDummyOptimizer(optimizer_dict=optimizers), tmp_path)
    assert callback.monitor.step == len(sink.frames) == STEPS
    assert not lines and not callback.findings
    for frame in sink.frames:
        expected = {site: 0.1 * norm for site, norm in frame["weight_grad.norm"].items()}
        assert len(expected) == 4
        assert dict(frame["update.norm"].items()) == pytest.approx(expected, rel=1e-4)


class Lomo(torch.optim.Optimizer):
    """In the shape of LOMO, whose `step` Accelerate leaves out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 0.1})
        for p in model.parameters():
            p.register_hook(self.update)

    @torch.no_grad()
    def update(self, grad: Any) -> Any:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.data.add_(p.grad, alpha=-0.1)
                p.grad = None
        return grad


def test_steps_that_no_optimizer_makes_are_counted_by_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    model = Regression()
    lomo = Lomo(model)

    def backward(_: Any, loss: Tensor, **options: Any) -> None:
        loss.backward()
        lomo.update(None)

    monkeypatch.setattr(Accelerator, "backward", backward)
    monkeypatch.setattr(AcceleratedOptimizer, "step", lambda self, closure=None: None)
    callback, lines, _ = train(model, lomo, tmp_path)
    assert callback.monitor.step == STEPS
    assert not callback.findings
    assert lines == [
        "gradlab: 6 backward passes have ended without a step to count: Lomo, which was given, has not been seen to "
        "step. Put the update into `with monitor.stepping():` of the monitor that gradlab.watch gives, and it is "
        "counted."
    ]
