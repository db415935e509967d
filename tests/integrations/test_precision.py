"""Mixed precision under Accelerate and the Trainer of Hugging Face: no loss scale in the numbers, and steps as counted.

Neither has a GradScaler on the CPU; one is put where theirs would be.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_ranks import numbers

import gradlab
from gradlab import Tap
from gradlab.sinks import MemorySink

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs gradlab[integrations]"),
    pytest.mark.filterwarnings("ignore"),  # advice of both libraries
]
TAPS = [Tap("*", of="weight_grad", stage=["final", "clipped"]), Tap("*", of="update")]
CLIP = 0.05


def scaler() -> torch.amp.GradScaler:
    """Overflows in the first step, and again after every two good ones."""
    return torch.amp.GradScaler(
        "cpu", init_scale=2.0**30, backoff_factor=2.0**-15, growth_factor=2.0**15, growth_interval=2
    )


def norms(model: nn.Module) -> dict[str, float]:
    """Of all gradients, in float64."""
    return {name: p.grad.double().norm().item() for name, p in model.named_parameters()}


def under_accelerate(kind: str, sink: MemorySink | None) -> tuple[list[Tensor], list[Any]]:
    """The weights at the end, and the norms before and after clipping of each update, by autograd."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=kind)
    if kind == "fp16":
        accelerator.native_amp, accelerator.scaler = True, scaler()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2))
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    monitor = gradlab.watch(model, optimizer, taps=TAPS, sinks=[sink], strict=True) if sink is not None else None
    truth = []
    for step in range(7):
        optimizer.zero_grad()
        batch = torch.randn(4, 32, generator=torch.Generator().manual_seed(step))
        accelerator.backward(model(batch).square().mean())
        scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
        before = {name: norm / scale for name, norm in norms(net).items()}
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        after = norms(net)
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            truth.append({"weight_grad.norm": before, "weight_grad.norm@clipped": after})
    if monitor is not None:
        monitor.close()
    return list(net.parameters()), truth


@pytest.mark.parametrize("kind, num_steps", [("fp16", 4), ("bf16", 7)])
def test_accelerate(kind: str, num_steps: int) -> None:
    sink = MemorySink()
    weights, truth = under_accelerate(kind, sink)
    assert all(torch.equal(a, b) for a, b in zip(weights, under_accelerate(kind, None)[0], strict=True))
    assert len(truth) == len(sink.frames) == num_steps
    for got, want in zip(numbers(sink.frames), truth, strict=True):
        for metric, values in want.items():
            assert got[metric] == pytest.approx(values, rel=1e-5)
    assert len([one for one in sink.findings if one.kind == "skipped_update"]) == (2 if kind == "fp16" else 0)


@pytest.mark.parametrize("kind, optim", [("fp16", "sgd"), ("fp16", "adamw_torch_fused"), ("bf16", "sgd")])
def test_the_trainer(kind: str, optim: str, tmp_path: Path) -> None:
    """A fused optimizer leaves the update out by itself: that step is logged, with gradients that are not finite."""
    from accelerate.state import AcceleratorState
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from gradlab.integrations.huggingface import GradlabCallback

    def train(sink: MemorySink | None) -> tuple[list[Tensor], list[float]]:
        AcceleratorState._reset_state()
        torch.manual_seed(0)
        ids = {"bos_token_id": 0, "eos_token_id": 1}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, **ids))
        tokens = torch.randint(0, 64, (32, 16))
        arguments = TrainingArguments(
            str(tmp_path / str(sink is None)),
            max_steps=7,
            optim=optim,
            per_device_train_batch_size=2,
            logging_steps=1,
            max_grad_norm=CLIP,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **{kind: True},
        )
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens])
        if kind == "fp16":
            trainer.accelerator.native_amp, trainer.accelerator.scaler = True, scaler()
        if sink is not None:
            GradlabCallback(taps=TAPS, sinks=[sink], strict=True).first_of(trainer)
        trainer.train()
        return list(model.parameters()), [e["grad_norm"] for e in trainer.state.log_history if "loss" in e]

    sink = MemorySink()
    weights, its_norms = train(sink)
    assert all(torch.equal(a, b) for a, b in zip(weights, train(None)[0], strict=True))
    good = [1, 2, 4, 5] if kind == "fp16" else list(range(7))
    logged = {frame.step: got for frame, got in zip(sink.frames, numbers(sink.frames), strict=True)}
    assert list(logged) == (list(range(7)) if "fused" in optim else good)
    skipped = [one.step for one in sink.findings if one.kind == "skipped_update"]
    assert skipped == [step for step in range(7) if step not in logged]
    for step, got in logged.items():
        assert (max(got["update.norm"].values()) > 0) == (step in good)
        for metric, whole in (("weight_grad.norm", its_norms[step]), ("weight_grad.norm@clipped", CLIP)):
            norm = sum(v**2 for v in got[metric].values()) ** 0.5
            assert norm == pytest.approx(whole, rel=1e-4) if step in good else not math.isfinite(norm)
