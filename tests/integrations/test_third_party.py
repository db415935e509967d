"""Models that nobody here wrote, in a plain loop: the numbers are autograd's, and training is the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_ranks import numbers

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


def vit() -> Made:
    """A vision transformer of Hugging Face."""
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes))
    return model, lambda net: net(torch.randn(2, 3, 8, 8), labels=torch.randint(0, 3, (2,))).loss


def bert() -> Made:
    """An encoder with dropout, whose head shares its weights with the embedding."""
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = hf.BertForMaskedLM(hf.BertConfig(vocab_size=32, max_position_embeddings=16, **sizes))

    def loss(net: Any) -> Tensor:
        tokens, mask = torch.randint(0, 32, (2, 12)), torch.ones(2, 12, dtype=torch.long)
        mask[1, 8:] = 0
        return net(input_ids=tokens, attention_mask=mask, labels=tokens).loss

    return model, loss


def t5() -> Made:
    """An encoder and a decoder, one embedding for both and for the head."""
    hf = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0))
    assert model.lm_head.weight is model.shared.weight
    return model, lambda net: net(input_ids=torch.randint(0, 32, (2, 9)), labels=torch.randint(0, 32, (2, 7))).loss


def checkpointed(use_reentrant: bool) -> Callable[[], Made]:
    """The causal model with its layers recomputed in the backward."""

    def make() -> Made:
        model, loss = llama()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        if use_reentrant:
            model.enable_input_require_grads()
        return model, loss

    make.__name__ = f"checkpointed-{'reentrant' if use_reentrant else 'by saved tensors'}"
    return make


class Adapter(nn.Module):
    """A frozen linear layer, and beside it a small one of low rank."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapters() -> Made:
    """The causal model frozen, with adapters at its attention."""
    model, loss = llama()
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
        layer.self_attn.v_proj = Adapter(layer.self_attn.v_proj)
    return model, loss


def peft() -> Made:
    """The same as the library does it."""
    library = pytest.importorskip("peft")
    model, loss = llama()
    config = library.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    return library.get_peft_model(model, config), loss


OTHERS = [x_transformer, llama, vit, bert, t5, checkpointed(False), checkpointed(True), adapters, peft]
MODELS = [lstm, transformer, *(pytest.param(make, marks=pytest.mark.integrations) for make in OTHERS)]


class Truth:
    """What autograd says, read by hooks of torch alone: norms of the gradients of weights and of modules' outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: list[dict[str, float]] = []
        self.outputs: list[dict[str, list[float]]] = []
        self._seen: dict[str, list[float]] = {}
        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(self._reader(name))

    def _reader(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda g: self._seen.setdefault(name, []).append(g.double().norm().item()))

        return hook

    def backward_ended(self) -> None:
        """Note one step."""
        named = self.model.named_parameters()
        self.weights.append({n: p.grad.double().norm().item() for n, p in named if p.grad is not None})
        self.outputs.append(dict(self._seen))
        self._seen.clear()


def train(make: Callable[[], Made], *, watched: bool) -> tuple[list[Tensor], Truth | None, MemorySink]:
    """The weights at the end, what autograd says where gradlab watches, and what was logged."""
    torch.manual_seed(0)
    model, loss = make()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    sink, truth = MemorySink(), Truth(model) if watched else None
    monitor = gradlab.watch(model, optimizer, taps=TAPS, sinks=[sink], strict=True) if watched else None
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model).backward()
        if truth is not None:
            truth.backward_ended()
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return list(model.parameters()), truth, sink


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_numbers_are_autograds_and_training_is_the_same(make: Callable[[], Made]) -> None:
    bare, _, _ = train(make, watched=False)
    weights, truth, sink = train(make, watched=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))
    assert truth is not None and len(sink.frames) == STEPS
    for frame, norms, outputs in zip(sink.frames, truth.weights, truth.outputs, strict=True):
        logged = numbers([frame])[0]
        assert logged["weight_grad.norm"] == pytest.approx(norms, rel=1e-5, abs=1e-12)
        # Of modules that are called once; a second call has a number of its own.
        once = {name: values[0] for name, values in outputs.items() if len(values) == 1 and f"{name}#2" not in logged}
        assert once
        found = {name: logged["output_grad.norm"].get(name) for name in once}
        assert found == pytest.approx(once, rel=1e-5, abs=1e-12)
