"""Models that nobody here wrote, in a plain loop: the numbers are autograd's, and training is the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.sinks import MemorySink

TAPS = [Tap("*", of="weight_grad"), Tap("*", of=["output", "output_grad"])]
STEPS = 3
Made = tuple[nn.Module, Callable[[Any], Tensor]]


def lstm() -> Made:
    """torch's LSTM, with a head that is called apart."""
    model = nn.ModuleDict({"lstm": nn.LSTM(5, 7, num_layers=2, dropout=0.1), "head": nn.Linear(7, 3)})

    def loss(net: Any) -> Tensor:
        out, _ = net["lstm"](torch.randn(6, 2, 5))
        return F.cross_entropy(net["head"](out[-1]), torch.randint(0, 3, (2,)))

    return model, loss


def transformer() -> Made:
    """torch's own."""
    model = nn.Transformer(16, 2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=32, batch_first=True)
    return model, lambda net: net(torch.randn(2, 5, 16), torch.randn(2, 4, 16)).square().mean()


def x_transformer() -> Made:
    """A decoder with rotary embeddings and gated feed-forward layers."""
    x = pytest.importorskip("x_transformers")
    layers = x.Decoder(dim=16, depth=2, heads=2, rotary_pos_emb=True, ff_glu=True)
    model = x.AutoregressiveWrapper(x.TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers))
    return model, lambda net: net(torch.randint(0, 32, (2, 12)))


def llama() -> Made:
    """A causal language model of Hugging Face, from its configuration."""
    hf = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}

    def loss(net: Any) -> Tensor:
        tokens = torch.randint(0, 32, (2, 12))
        return net(input_ids=tokens, labels=tokens).loss

    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **heads)), loss


MODELS = [
    lstm,
    transformer,
    pytest.param(x_transformer, marks=pytest.mark.integrations),
    pytest.param(llama, marks=pytest.mark.integrations),
]


def train(make: Callable[[], Made], *, watched: bool) -> tuple[list[Tensor], list[dict[str, float]], list[Any]]:
    """The weights at the end, the norms of the gradients by autograd in float64, and what was logged."""
    torch.manual_seed(0)
    model, loss = make()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sink = MemorySink()
    monitor = gradlab.watch(model, optimizer, taps=TAPS, sinks=[sink], strict=True) if watched else None
    truth = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model).backward()
        truth.append({n: p.grad.double().norm().item() for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    if monitor is None:
        return list(model.parameters()), truth, []
    monitor.close()
    assert len(monitor.latest()["output_grad.norm"]) > 3
    return list(model.parameters()), truth, [frame["weight_grad.norm"] for frame in sink.frames]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", MODELS)
def test_numbers_are_autograds_and_training_is_the_same(make: Callable[[], Made]) -> None:
    bare, _, _ = train(make, watched=False)
    weights, truth, logged = train(make, watched=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))
    assert len(logged) == STEPS
    for norms, series in zip(truth, logged, strict=True):
        assert {name: series[name] for name in norms} == pytest.approx(norms, rel=1e-5, abs=1e-12)
