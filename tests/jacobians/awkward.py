"""Models that are hard to differentiate in batches, and the plain float64 reference for their Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, and whether it is measured as in training."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    train: bool


def case(*shape: int, train: bool = True) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a model to the cases, under the name of what makes it."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[make.__name__] = Case(make, shape, train)
        return make

    return add


def reference(model: nn.Module, x: Tensor, pick: Callable[[Any], Tensor] = lambda out: out) -> Tensor:
    """[samples, rows, cols]: one plain backward for each entry of each sample of the output, on a copy of the model."""
    x = x.clone().requires_grad_()
    y = pick(deepcopy(model)(x))
    blocks = torch.zeros(len(y), y[0].numel(), x[0].numel(), dtype=x.dtype)
    for sample in range(len(y)):
        for row in range(y[0].numel()):
            x.grad = None
            y[sample].reshape(-1)[row].backward(retain_graph=True)
            assert x.grad is not None
            blocks[sample, row] = x.grad[sample].reshape(-1)
    return blocks


class Forward(nn.Module):
    """Layers and a forward of them, given as a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


@case(3, 4)
def linear() -> nn.Module:
    return nn.Linear(4, 3)


@case(3, 4)
def functional_mlp() -> nn.Module:
    return Forward(lambda m, x: torch.tanh(m.b(F.gelu(m.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 3))


@case(3, 4)
def in_place() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        h += 1.0
        h[:, 0] = h[:, 1] * 2
        return m.b(F.relu_(h))

    return Forward(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3))


@case(4, 4)
def batch_norm_train() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


@case(4, 4, train=False)
def batch_norm_eval() -> nn.Module:
    return batch_norm_train()


@case(3, 4)
def dropout_train() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))


@case(3, 4, train=False)
def dropout_eval() -> nn.Module:
    return dropout_train()


@case(2, 3, 6, 6)
def conv_and_pool() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


@case(2, 2, 3, 3)
def upsampling() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(2, 4, 2, stride=2), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2))


@case(2, 5, 4)
def norms() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.RMSNorm(4), nn.SiLU())


@case(2, 3, 4)
def lstm() -> nn.Module:
    return Forward(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 3, num_layers=2, batch_first=True))


@case(2, 3, 4, train=False)
def gru_with_dropout_eval() -> nn.Module:
    return Forward(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(4, 3, num_layers=2, dropout=0.5, batch_first=True))


@case(2, 3, 8)
def attention() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    return Forward(forward, qkv=nn.Linear(8, 24))


@case(2, 3, 8)
def multihead_attention() -> nn.Module:
    return Forward(
        lambda m, x: m.att(x, x, x, need_weights=False)[0], att=nn.MultiheadAttention(8, 2, batch_first=True)
    )


@case(2, 3, 8, train=False)
def encoder_layer_eval() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


class OldSquare(torch.autograd.Function):
    """x², in the old style: ctx in forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class NumpySquare(OldSquare):
    """x² with a backward in NumPy, which no batched backward can enter."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy(2 * ctx.saved_tensors[0].numpy() * grad.numpy())


class BranchingSquare(OldSquare):
    """x² with a Python branch on the gradient's values."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad if grad.abs().sum() > 0 else grad


@case(3, 4)
def old_style_function() -> nn.Module:
    return Forward(lambda m, x: m.b(OldSquare.apply(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3))


@case(3, 4)
def numpy_function() -> nn.Module:
    return Forward(lambda m, x: m.b(NumpySquare.apply(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3))


@case(3, 4)
def branching_function() -> nn.Module:
    return Forward(lambda m, x: m.b(BranchingSquare.apply(m.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3))


@case(3, 4)
def checkpointed() -> nn.Module:
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5))
    return Forward(lambda m, x: m.b(checkpoint(m.body, x, use_reentrant=False)), body=body, b=nn.Linear(5, 3))


@case(3, 4)
def checkpointed_reentrant() -> nn.Module:
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    return Forward(lambda m, x: m.b(checkpoint(m.body, x, use_reentrant=True)), body=body, b=nn.Linear(5, 3))


@case(3, 4)
def tied_weights() -> nn.Module:
    model = Forward(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    return model


@case(3, 4)
def python_control_flow() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        for _ in range(2 + int(h.sum().item() > 0)):
            h = torch.sin(m.a(h))
        return h

    return Forward(forward, a=nn.Linear(4, 4))


@case(3, 5)
def masks_and_sorting() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        h = torch.where(h > 0, h, 0.1 * h).sort(-1).values
        return torch.zeros_like(h).scatter(-1, h.topk(2).indices, h.topk(2).values).cumsum(-1)

    return Forward(forward, a=nn.Linear(5, 5))


@case(3, 8)
def fourier() -> nn.Module:
    return Forward(lambda m, x: torch.fft.rfft(m.a(x)).abs(), a=nn.Linear(8, 8))


@case(3, 4)
def hooked() -> nn.Module:
    """A forward hook that is part of the model, and backward hooks that look at values."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    model[1].register_full_backward_hook(lambda module, grad_in, grad_out: print(grad_out[0].sum().item(), end=""))
    return model


@case(3, 4)
def retained() -> nn.Module:
    """Keeps a hidden tensor and its gradient, as debugging code does."""

    def forward(m: Any, x: Tensor) -> Tensor:
        m.hidden = torch.tanh(m.a(x))
        if m.hidden.requires_grad:
            m.hidden.retain_grad()
        return m.b(m.hidden)

    return Forward(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 3))


@case(3, 4)
def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh())


@case(3, 4, train=False)
def spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh())


@case(3, 4)
def gradient_inside() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x) if x.requires_grad else m.a(x).requires_grad_()
        return torch.autograd.grad(h.pow(3).sum(), h, create_graph=True)[0]

    return Forward(forward, a=nn.Linear(4, 4))
