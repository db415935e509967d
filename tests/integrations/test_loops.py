"""A causal language model of Hugging Face under the Trainer and Accelerate: autograd's numbers, the same training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from two_ranks import Numbers, numbers

import gradlab
from gradlab import Tap
from gradlab.sinks import MemorySink

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs gradlab[integrations]"),
    pytest.mark.filterwarnings("ignore"),  # advice of both libraries
]
TAPS = [Tap("*", of="weight_grad", stage=["final", "clipped"]), Tap("*", of=["output", "output_grad"])]
CLIP, STEPS, MICRO = 0.05, 3, 2


def model() -> Any:
    """Llama from a configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def rows() -> list[dict[str, Tensor]]:
    """Tokens, the first of each row no label: the Trainer counts it where the model's loss does not."""
    tokens = torch.randint(0, 32, (2 * MICRO * STEPS, 12), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, 0] = -100
    return [{"input_ids": ids, "labels": these} for ids, these in zip(tokens, labels, strict=True)]


def truth() -> Numbers:
    """What autograd says in float64 of the same steps, in a plain loop."""
    net, found = model().double(), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        chosen = rows()[step * 2 * MICRO : (step + 1) * 2 * MICRO]
        seen: list[Tensor] = []
        keep = net.model.layers[1].mlp.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        loss = net(**{key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}).loss
        keep.remove()
        seen[0].retain_grad()
        loss.backward()
        logged = {"weight_grad.norm": {n: p.grad.norm().item() for n, p in net.named_parameters()}}
        logged["output_grad.norm"] = {"model.layers.1.mlp": seen[0].grad.norm().item()}
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        logged["weight_grad.norm@clipped"] = {n: p.grad.norm().item() for n, p in net.named_parameters()}
        optimizer.step()
        found.append(logged)
    return found


def agree(found: Numbers) -> None:
    """What was logged is what autograd says, as far as float32 goes."""
    for got, want in zip(found, truth(), strict=True):
        for metric, values in want.items():
            assert {site: got[metric].get(site) for site in values} == pytest.approx(values, rel=2e-4, abs=1e-7)


TRAINER: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed, reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}


@pytest.mark.parametrize("kind", TRAINER)
def test_the_trainer(kind: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from gradlab.integrations.huggingface import GradlabCallback

    def train(sink: MemorySink | None, **options: Any) -> tuple[list[Tensor], list[float]]:
        arguments = TrainingArguments(
            str(tmp_path / str(sink is None)),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=MICRO,
            max_grad_norm=CLIP,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        trainer = Trainer(model(), arguments, train_dataset=rows())
        if sink is not None:
            GradlabCallback(taps=TAPS, sinks=[sink], strict=True).first_of(trainer)
        trainer.train()
        return list(trainer.model.parameters()), [e["loss"] for e in trainer.state.log_history if "loss" in e]

    sink = MemorySink()
    weights, losses = train(sink, **TRAINER[kind])
    # Watched steps of a compiled model run eagerly, where attention takes another way and rounds otherwise.
    bare, its_losses = train(None, **({} if kind == "compiled" else TRAINER[kind]))
    assert losses == its_losses and all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))
    agree(numbers(sink.frames))


@pytest.mark.parametrize("kind", ["plain", "checkpointed"])
def test_accelerate(kind: str) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def train(sink: MemorySink | None) -> tuple[list[Tensor], list[float]]:
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
        net, losses = model(), []
        if kind == "checkpointed":
            net.gradient_checkpointing_enable()
        loader = torch.utils.data.DataLoader(rows(), batch_size=2)
        net, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1), loader)
        monitor = gradlab.watch(net, optimizer, taps=TAPS, sinks=[sink], strict=True) if sink is not None else None
        for batch in loader:
            with accelerator.accumulate(net):
                loss = net(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        if monitor is not None:
            monitor.close()
        return list(net.parameters()), losses

    sink = MemorySink()
    weights, losses = train(sink)
    bare, its_losses = train(None)
    assert losses == its_losses and all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))
    agree(numbers(sink.frames))


def test_a_finding_is_a_line_in_the_log_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradlab.integrations import huggingface

    lines: list[tuple[str, str]] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(huggingface._log, level, lambda *args, at=level: lines.append((at, args[0] % args[1:])))
    for severity in ("info", "error"):
        huggingface._log_line("it is so.", gradlab.Finding(name="n", first_step=0, message="m", severity=severity))
    assert lines == [("info", "gradlab: it is so."), ("warning", "gradlab: it is so.")]
