"""Module types beyond `awkward.CASES` that some way of differentiating in batches cannot do, or gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jacobians.awkward import Forward, OldSquare
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Row:
    """A module, its input, how close the Jacobian has to be, and what it is compared with."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
    differences: bool = False
    """Whether nothing can differentiate it, so that central differences in float64 are the reference."""


ROWS: dict[str, Row] = {}


def row(*shape: int, **options: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a module under the name of what makes it."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ROWS[make.__name__] = Row(make, shape, **options)
        return make

    return add


def _around(function: Callable[[Tensor], Tensor], into: int = 4, out: int = 5) -> nn.Module:
    return Forward(lambda m, x: function(m.a(x)), a=nn.Linear(into, out))


@row(2, 3, 8)
def attention_forced_to_math() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    return Forward(forward, qkv=nn.Linear(8, 24))


@row(2, 3, 8)
def encoder_layer_train() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


class NewSquare(torch.autograd.Function):
    """x², in the new style, with setup_context."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class NewSquareWithRule(NewSquare):
    """The same with a generated rule for vmap."""

    generate_vmap_rule = True


class InPlaceSquare(OldSquare):
    """x² with a backward that writes a batched gradient into a tensor without a batch."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.zeros_like(x).add_(2 * x).mul_(grad)


@row(3, 4)
def new_style_function() -> nn.Module:
    return _around(NewSquare.apply)


@row(3, 4)
def new_style_function_with_a_vmap_rule() -> nn.Module:
    return _around(NewSquareWithRule.apply)


@row(3, 4)
def function_with_an_in_place_backward() -> nn.Module:
    return _around(InPlaceSquare.apply)


@row(3, 4)
def saved_on_cpu() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return torch.tanh(m.a(x)).exp()

    return Forward(forward, a=nn.Linear(4, 5))


@row(3, 4, dtype=torch.float32, tolerance=2e-2)
def autocast_linear() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m.b(torch.tanh(m.a(x))).float()

    return Forward(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 3))


@row(3, 2, 5, 5, dtype=torch.float32, tolerance=5e-2)
def autocast_conv_and_group_norm() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m.norm(m.conv(x)).float()

    return Forward(forward, conv=nn.Conv2d(2, 4, 3), norm=nn.GroupNorm(2, 4))


@row(3, 4, dtype=torch.float32, tolerance=5e-2)
def autocast_linear_and_layer_norm() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m.norm(m.a(x)).float()

    return Forward(forward, a=nn.Linear(4, 8), norm=nn.LayerNorm(8))


@row(3, 4)
def scripted_submodule() -> nn.Module:
    import warnings

    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.a(x)) * 2.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scripting is on its way out, scripted models are not
        return nn.Sequential(torch.jit.script(Scripted()), nn.Linear(5, 3))


@row(4, 3, 5)
def ctc() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits = m.a(x).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((x.shape[0],), 3)
        targets = torch.tensor([[1, 2]]).expand(x.shape[0], 2)
        return F.ctc_loss(logits, targets, lengths, torch.full((x.shape[0],), 2), reduction="none")[:, None]

    return Forward(forward, a=nn.Linear(5, 5))


@row(2, 2, 4, 4)
def unfold() -> nn.Module:
    return nn.Sequential(nn.Unfold(2), nn.Tanh())


@row(2, 3, 4, dtype=torch.float32, tolerance=1e-5)
def lstm_float32() -> nn.Module:
    return Forward(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 3, batch_first=True))


@row(2, 3, 4, dtype=torch.float32, tolerance=1e-5)
def gru_float32() -> nn.Module:
    return Forward(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(4, 3, batch_first=True))


@row(3, 4)
def boolean_mask() -> nn.Module:
    def function(h: Tensor) -> Tensor:
        filled = torch.zeros_like(h)
        filled[h > 0] = h[h > 0] * 2
        return filled + h

    return _around(function)


@row(3, 6)
def singular_values() -> nn.Module:
    return _around(lambda h: torch.linalg.svdvals(h.unflatten(-1, (2, 3))), 6, 6)


@row(3, 4)
def cumulative_product() -> nn.Module:
    return _around(lambda h: h.cumprod(-1))


@row(3, 4)
def standard_deviation() -> nn.Module:
    return _around(lambda h: h.std(-1, keepdim=True) * h)


@row(3, 4)
def quantile() -> nn.Module:
    return _around(lambda h: h.quantile(0.3, dim=-1, keepdim=True) + h)


@row(3, 4)
def writes_into_a_fresh_buffer() -> nn.Module:
    def function(h: Tensor) -> Tensor:
        buffer = torch.empty_like(h)
        for column in range(h.shape[-1]):
            buffer[:, column] = h[:, column] * column
        return buffer

    return _around(function)


@row(2, 3, 6, 6, dtype=torch.float32, tolerance=1e-4)
def batch_norm_and_conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2))


@row(1, 2, 4, 8, dtype=torch.float32, tolerance=2e-2, differences=True)
def flex_attention() -> nn.Module:
    """Without a backward on the CPU."""
    from torch.nn.attention.flex_attention import flex_attention as attend

    return Forward(lambda m, x: attend(x, x * 0.5, m.a(x)), a=nn.Linear(8, 8))


def by_differences(model: nn.Module, x: Tensor) -> Tensor:
    """[1, rows, cols] by central differences in float64."""
    model, x = model.double(), x.double()
    columns = []
    with torch.no_grad():
        for index in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=x.dtype)
            step[index] = 1e-5
            step = step.view_as(x)
            columns.append((model(x + step) - model(x - step)).reshape(-1) / 2e-5)
    return torch.stack(columns, -1)[None]
