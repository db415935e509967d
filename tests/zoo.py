"""Awkward models: each a small module with something in it that breaks naive hooks, with a batch and a loss.

`ZOO` maps a name to a `Case`. A test runs every case in float64 against plain autograd.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import gradlab

ZOO: dict[str, Case] = {}
Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Case:
    """A model, its input, and a scalar loss of its output."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[Any], Tensor]

    def batch(self, seed: int = 0) -> Tensor:
        """[*shape] float32, the same for the same seed."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))


def case(*shape: int, loss: Callable[[Any], Tensor] = lambda out: out.square().mean()) -> Callable[[type], type]:
    """Put a module class into the zoo."""

    def add(cls: type) -> type:
        ZOO[cls.__name__] = Case(cls, shape, loss)
        return cls

    return add


@case(5, 4)
class OneLinear(nn.Linear):
    """The root is a leaf module of torch.nn."""

    def __init__(self) -> None:
        super().__init__(4, 3)


@case(5, 4)
class Functional(nn.Module):
    """Activations, residual adds and softmax are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        h = h + x
        h = F.relu(self.b(h)) * 2
        return F.softmax(h, dim=-1)


@case(5, 4)
class InPlace(nn.Module):
    """In-place activation and addition on watched tensors: gradients are those before the in-place op."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        y = self.b(h)
        y += 1.0
        return F.relu_(y)


@case(5, 4, loss=lambda out: out["y"].square().mean() + out["more"][1].mean())
class DictOutput(nn.Module):
    """A dict with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TupleOutput()

    def forward(self, x: Tensor) -> dict[str, Any]:
        left, right = self.inner(x)
        return {"y": left * right, "more": (left, right), "n": 3}


@case(5, 4, loss=lambda out: (out[0] * out[1]).mean())
class TupleOutput(nn.Module):
    """A tuple of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), torch.tanh(self.b(x))


@case(5, 4, loss=lambda out: (out.left * out.right).mean())
class NamedTupleOutput(TupleOutput):
    """A named tuple."""

    def forward(self, x: Tensor) -> Any:
        return Pair(*super().forward(x))


@dataclasses.dataclass
class Result:
    """What DataclassOutput returns."""

    logits: Tensor
    hidden: list[Tensor]


@case(5, 4, loss=lambda out: out.logits.square().mean() + out.hidden[0].mean())
class DataclassOutput(nn.Module):
    """A dataclass with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Result:
        h = self.inner(x).sigmoid()
        return Result(self.head(h), [h])


@case(5, 4)
class CalledThrice(nn.Module):
    """One module called three times in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return x


@case(5, 4)
class SharedUnderTwoNames(nn.Module):
    """The same module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


@case(5, 4)
class TiedWeights(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.out.weight = self.into.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.into(x)))


@case(5, 4)
class FrozenTrunk(nn.Module):
    """The first layer is frozen: no gradient exists before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.trunk.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.trunk(x)))


@case(5, 4)
class NoGradTrunk(nn.Module):
    """The first layer runs without gradients inside a forward with them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.trunk(x)
        return self.head(h)


@case(5, 4)
class Unused(nn.Module):
    """A layer that never runs, and a parameter that no module owns but the root."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) * self.scale


@case(5, 4)
class DroppedBranch(nn.Module):
    """A branch runs and its result is thrown away: it has values and no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.side(x)
        return self.main(x)


@case(6, 1, 6, 6)
class Convolutional(nn.Module):
    """Convolution, batch norm, in-place ReLU, pooling, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


@case(3, 5, 8)
class Attention(nn.Module):
    """MultiheadAttention, whose out_proj never runs as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0])


@case(3, 5, 8)
class FunctionalAttention(nn.Module):
    """scaled_dot_product_attention and chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


@case(3, 5, 4, loss=lambda out: out[0].square().mean() + out[1][1].mean())
class Recurrent(nn.Module):
    """LSTM: nested tuple output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.lstm(x)


@case(5, 4)
class NonReentrantCheckpoint(nn.Module):
    """Activation checkpointing, non-reentrant."""

    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Functional() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@case(5, 4)
class ReentrantCheckpoint(NonReentrantCheckpoint):
    """Activation checkpointing, reentrant: the first forward has no graph."""

    reentrant = True


@case(5, 4)
class SharedReentrant(nn.Module):
    """One block in two reentrant segments: they are recomputed last first."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.block = nn.Linear(4, 4), Functional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=True)
        return x


@case(5, 4)
class TwiceInReentrantSegment(nn.Module):
    """A module called twice inside one reentrant segment, and once more in another."""

    class Twice(nn.Module):
        """Calls its cell twice."""

        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.cell(torch.tanh(self.cell(x))))

    def __init__(self) -> None:
        super().__init__()
        self.into, self.twice = nn.Linear(4, 4), self.Twice()

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.twice, self.into(x), use_reentrant=True)
        return checkpoint(self.twice.cell, x, use_reentrant=True)


@case(5, 4)
class NamedByHand(nn.Module):
    """gradlab.tap names, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = gradlab.tap("hidden", self.a(x).square())
        return gradlab.tap("hidden", self.b(h).square())


@case(5, 4)
class CustomFunction(nn.Module):
    """An autograd.Function of the user's own."""

    class Clamp(torch.autograd.Function):
        """Clamp with a straight-through gradient."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clamp(-0.5, 0.5)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.Clamp.apply(self.a(x)) * 3


@case(5, 4)
class Views(nn.Module):
    """A module that returns a view, which is then modified in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.flat = nn.Linear(4, 4), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        h = self.flat(self.a(x).view(-1, 2, 2)) * 1.0
        h[:, :2].mul_(2.0)
        return h


@case(5, 4)
class ReturnsItsInput(nn.Module):
    """Identity modules: one tensor under several names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.same = nn.Linear(4, 4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.same(self.same(self.a(x)))


@case(5, 4)
class ControlFlow(nn.Module):
    """Which layers run depends on the data's shape and on a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.odd = nn.Linear(4, 4), nn.Linear(4, 4)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return (self.odd if self.count % 2 else self.even)(x)


@case(5, 4)
class KeywordArguments(nn.Module):
    """Tensors come as keyword arguments."""

    class Inner(nn.Module):
        """Takes everything by keyword."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, *, hidden: Tensor, scale: float) -> Tensor:
            return self.a(hidden) * scale

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(hidden=x.exp(), scale=0.5)


@case(5, 4)
class ComplexNumbers(nn.Module):
    """Complex values in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(self.a(x)) * 2).real


@case(5, 4)
class DropoutAndNorm(nn.Module):
    """Randomness and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@case(5, 4)
class Recursive(nn.Module):
    """A module that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = torch.tanh(self.a(x))
        return self(x, depth - 1) if depth else x


@case(5, 4)
class GradientInsideForward(nn.Module):
    """autograd.grad in the forward, as energy models and physics networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return force


@case(5, 4)
class ParametersAtRoot(nn.Module):
    """Only bare parameters, no child module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.table = nn.ParameterList([nn.Parameter(torch.randn(3))])

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.weight) + self.table[0]


class ModelOutput(OrderedDict[str, Any]):
    """A mapping whose items are attributes too, as the outputs of Hugging Face models are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@case(5, 4, loss=lambda out: out.loss)
class LossInsideOutput(nn.Module):
    """The loss is one of the things that the model returns, in a mapping with attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> ModelOutput:
        hidden = F.gelu(self.body(x))
        logits = self.head(hidden)
        loss = F.cross_entropy(logits, torch.arange(len(x)) % 3)
        return ModelOutput(loss=loss, logits=logits, hidden_states=(hidden, logits), past=None)


@case(5, 4)
class TiedByFunctional(nn.Module):
    """The embedding's weight is the head's too, through F.linear: the head is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x * 10).long() % 7
        return F.log_softmax(F.linear(self.table(tokens).mean(1), self.table.weight), dim=-1)


@case(6, 4)
class Bag(nn.Module):
    """EmbeddingBag: its gradient reaches few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 5, mode="mean"), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag((x * 10).long() % 9))


@case(5, 4)
class Containers(nn.Module):
    """Modules and parameters in lists and dicts, called by index and by key, inside comprehensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.acts = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})
        self.scales = nn.ParameterDict({"first": torch.ones(4), "last": torch.full((4,), 0.5)})

    def forward(self, x: Tensor) -> Tensor:
        outs = [self.acts["tanh" if i % 2 else "relu"](layer(x)) for i, layer in enumerate(self.layers)]
        return torch.stack([F.softplus(h * s) for h, s in zip(outs, self.scales.values(), strict=False)]).sum(0)


@case(5, 4)
class SwappedAtRunTime(nn.Module):
    """Each forward puts its two layers into one another's place: a site is named as the layer is when a step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.a, self.b = self.b, self.a
        return self.b(torch.tanh(self.a(x)))


def double_the_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook of the user's that changes the output."""
    return output * 2


def halve_the_input(module: nn.Module, args: Any) -> Any:
    """A forward pre-hook of the user's that changes the input."""
    return tuple(a / 2 for a in args)


def shrink_the_gradient(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
    """A full backward hook of the user's that changes the gradient."""
    return tuple(None if g is None else g * 0.1 for g in grad_input)


@case(5, 4)
class HookedByUser(nn.Module):
    """Hooks of the user's own change an input, an output and the gradient of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.a.register_forward_hook(double_the_output)
        self.b.register_forward_pre_hook(halve_the_input)
        self.c.register_full_backward_hook(shrink_the_gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(self.a(x))))


@case(3, 5, 8)
class OperatorsAndEinsum(nn.Module):
    """Attention spelt out: einsum, `@`, a mask of -inf, torch.where, unpacking."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.mix = nn.Parameter(torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x) for project in self.qkv)
        scores = torch.einsum("btd,bsd->bts", q, k) / math.sqrt(8)
        future = torch.ones(5, 5, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        weights = torch.where(weights > 0.1, weights, 0.1 * weights)
        return -(weights @ v) @ self.mix


@case(4, 6, 3)
class CellInLoop(nn.Module):
    """A GRUCell, once a time step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return h


@case(5, 4)
class NonContiguous(nn.Module):
    """Modules that return transposed, sliced and expanded tensors."""

    class Strided(nn.Module):
        """Every second column of the transpose."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).t()[::2]

    def __init__(self) -> None:
        super().__init__()
        self.strided = self.Strided()

    def forward(self, x: Tensor) -> Tensor:
        return self.strided(x).unsqueeze(0).expand(3, -1, -1)


@case(5, 4, loss=lambda out: out)
class ScalarOutput(nn.Module):
    """Modules that return 0-d tensors: the model is its own loss."""

    class Energy(nn.Module):
        """The mean square."""

        def forward(self, x: Tensor) -> Tensor:
            return x.square().mean()

    def __init__(self) -> None:
        super().__init__()
        self.a, self.energy = nn.Linear(4, 4), self.Energy()

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(self.a(x)) + 1


@case(0, 4, loss=lambda out: out.sum())
class EmptyBatch(nn.Module):
    """A batch without a row: tensors without elements have a norm of 0, parameters have gradients of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@case(5, 4)
class InBfloat16(nn.Module):
    """All of it in bfloat16, whatever it is cast to; the output is float32."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)
        self.to(self.dtype)

    def double(self) -> nn.Module:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.silu(self.norm(self.a(x.to(self.dtype))))).float()


@case(5, 4)
class InFloat16(InBfloat16):
    """All of it in float16, whose smallest gradients are subnormal."""

    dtype = torch.float16


@case(5, 4)
class Parametrized(nn.Module):
    """Weights computed from others at each access: weight norm and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.b = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@case(5, 4)
class LazyShapes(nn.Module):
    """Lazy layers, made real by a dry run."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
        self.net(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@case(5, 4)
class ScriptedPart(nn.Module):
    """A part compiled by TorchScript: no hook sees inside it, its parameters are seen."""

    class Gate(nn.Module):
        """What is scripted."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.a(x)) * x

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.gate = torch.jit.script(self.Gate())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.gate(x)))


@case(5, 4)
class ReturnsNone(nn.Module):
    """A module that returns nothing and leaves its result on a list."""

    class Collector(nn.Module):
        """Appends to what it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, into: list[Tensor]) -> None:
            into.append(torch.tanh(self.a(x)))

    def __init__(self) -> None:
        super().__init__()
        self.collector = self.Collector()

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for scale in (1.0, 2.0):
            self.collector(x * scale, into=found)
        return found[0] * found[1]


@case(5, 4, loss=lambda out: out[0][1][0].square().mean() + out[1]["z"][0].mean())
class DeeplyNested(nn.Module):
    """Tuples in lists in dicts, passed between modules too."""

    class Pass(nn.Module):
        """Takes and gives nested containers."""

        def forward(self, value: Any) -> Any:
            (x, [y, *_]), more = value
            return (x * y, [y.exp()], "text"), {"z": (more["x"].sin(), 1.0), "n": None}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.inner = nn.Linear(4, 4), nn.Linear(4, 4), self.Pass()

    def forward(self, x: Tensor) -> Any:
        h, g = (layer(x) for layer in (self.a, self.b))
        return self.inner(((h, [g, None]), {"x": h}))


@case(5, 4)
class ComplexParameters(nn.Module):
    """Complex parameters: their norms are those of real and imaginary parts together."""

    def __init__(self) -> None:
        super().__init__()
        self.rotate = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) * self.rotate).abs().square()


@case(5, 4)
class InPlaceOnViews(nn.Module):
    """In-place ops on views of a watched tensor, and a write by index."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        left, right = h[:, :2], h.narrow(1, 2, 2)
        right.add_(1.0)
        h[0, 0] = 5.0
        left *= 2
        return self.b(h).mul_(h)


@case(5, 4)
class BuffersInForward(nn.Module):
    """A running mean of the user's own, updated in place and by assignment."""

    running: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("running", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.running.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        self.calls = self.calls + 1
        return h - self.running.clone()


@case(5, 4)
class NestedCheckpoint(nn.Module):
    """Checkpointed segments inside a checkpointed segment, non-reentrant."""

    reentrant = False

    class Part(nn.Module):
        """A segment of two segments."""

        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.reentrant = reentrant
            self.blocks = nn.ModuleList(Functional() for _ in range(2))
            self.between = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.blocks[0], x, use_reentrant=self.reentrant)
            return checkpoint(self.blocks[1], torch.tanh(self.between(x)), use_reentrant=self.reentrant)

    def __init__(self) -> None:
        super().__init__()
        self.into, self.part = nn.Linear(4, 4), self.Part(self.reentrant)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for _ in range(2):
            x = checkpoint(self.part, x, use_reentrant=self.reentrant)
        return x


@case(5, 4)
class NestedReentrant(NestedCheckpoint):
    """The same, reentrant: the inner segments are recomputed twice."""

    reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch warns of the inner segments' first forward, which has no gradients
            warnings.simplefilter("ignore", UserWarning)
            return super().forward(x)


@case(5, 4)
class SeveralOutputsOfOneNode(nn.Module):
    """unbind, and an autograd.Function with two outputs of which one goes unused."""

    class Split(torch.autograd.Function):
        """Two copies, scaled."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, x * 3

        @staticmethod
        def backward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
            return left * 2 + right * 3

    class Part(nn.Module):
        """Returns both."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return SeveralOutputsOfOneNode.Split.apply(x)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.part = nn.Linear(4, 4), self.Part()

    def forward(self, x: Tensor) -> Tensor:
        used, _ = self.part(self.a(x))
        first, *_ = torch.sort(used, dim=-1)
        return first


@case(5, 4)
class HandsOutAParameter(nn.Module):
    """A part that returns its parameter, which is no tensor of the graph."""

    class Const(nn.Module):
        """Takes nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.ones(3))

        def forward(self) -> Tensor:
            return self.p

    def __init__(self) -> None:
        super().__init__()
        self.const, self.fc = self.Const(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.const()


@case(5, 4)
class GeneratedByFx(nn.Module):
    """A part whose class and forward torch.fx has generated."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU()))
        self.b = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@case(5, 4)
class HashedByState(nn.Module):
    """A part that is hashed by a state which each forward changes, and equal to everything of its class."""

    class Counted(nn.Linear):
        """As torchmetrics' metrics are."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

        def __eq__(self, other: object) -> bool:
            return type(self) is type(other)

        def __hash__(self) -> int:
            return hash((id(self), self.calls))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.Counted(4, 4), self.Counted(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


@case(5, 4)
class SelectiveCheckpoint(nn.Module):
    """A checkpoint that keeps the results of some ops: a dispatch mode hands them to the recomputation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def body(self, x: Tensor) -> Tensor:
        h = torch.sin(self.a(x))
        return self.b(h) * torch.exp(h.mean()) / torch.linalg.vector_norm(h)

    def forward(self, x: Tensor) -> Tensor:
        kept = [torch.ops.aten.addmm.default, torch.ops.aten.mean.default, torch.ops.aten.linalg_vector_norm.default]
        context = partial(create_selective_checkpoint_contexts, kept)
        return torch.tanh(checkpoint(self.body, x, use_reentrant=False, context_fn=context))


@case(5, 4)
class ReturnsDistribution(nn.Module):
    """A part returns an object in which no tensor is seen; all others are."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> torch.distributions.Normal:
            return torch.distributions.Normal(self.a(x), 1.0, validate_args=False)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.b = self.Encoder(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.encoder(x).mean)


@case(5, 4)
class TransformsInside(nn.Module):
    """A transform of functorch in the middle of a forward: what is in it has no values of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = torch.vmap(lambda row: torch.softmax(row * 2, 0))(h)
        slope = torch.func.grad(lambda v: torch.sin(v).sum())(x.detach())
        return self.b(h) + slope


@case(5, 4)
class UnderModes(nn.Module):
    """A forward that puts modes of its own around a part of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with FlopCounterMode(display=False), torch.device("cpu"):
            h = torch.relu(self.a(x)) + torch.ones(4, dtype=x.dtype)
        return self.b(h)
