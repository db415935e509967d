"""What is said when a Jacobian cannot be had: what is wrong, where, and the nearest fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab.errors import JacobianError
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.replayed import ReplayedSlice


class Small(nn.Module):
    """An encoder, a head, and a branch that does not reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(9, 4), nn.Linear(4, 6)
        self.side, self.head = nn.Linear(4, 2), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        self.side(h)
        return self.head(self.encoder(h).relu())


TEXTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown of": (
        {"of": "encdoer", "wrt": "embed"},
        "of='encdoer' is no site in this forward of Small. Did you mean 'encoder' or 'encoder:in'? It has: input, "
        "embed:in, embed, side:in, side, encoder:in, encoder, head:in, head, output.",
    ),
    "unknown wrt": (
        {"wrt": "encoder.wieght"},
        "wrt='encoder.wieght' is no site in this forward of Small. Did you mean 'encoder.weight' or 'encoder.bias' or "
        "'encoder:in'? It has: input, embed:in, embed, side:in, side, encoder:in, encoder, head:in, head, output, "
        "embed.weight, encoder.weight, ... (5 more).",
    ),
    "unknown op": (
        {"of": "/gelu", "wrt": "encoder"},
        "of='/gelu' is no site in this forward of Small. Did you mean '/relu'? It has: input, embed:in, embed, "
        "side:in, side, encoder:in, encoder, /relu, head:in, head, output.",
    ),
    "wrong order": (
        {"of": "encoder", "wrt": "head"},
        "of='encoder' is computed before wrt='head', so it cannot depend on it; swap the two.",
    ),
    "no dependence": (
        {"wrt": "side"},
        "of='output' does not depend on wrt='side' in this forward; take a `wrt` on its path, and look for detach() or "
        "no_grad() between the two.",
    ),
    "of a parameter": (
        {"of": "head.weight", "wrt": "embed"},
        "of='head.weight' is a parameter, which depends on nothing in a forward; give a tensor's site.",
    ),
    "integers": (
        {},
        "wrt='input' is int64, which has no gradient; take a floating-point tensor behind it, such as the output of an "
        "embedding.",
    ),
    "row out of range": (
        {"wrt": "embed", "rows": [0, 6]},
        "rows: index 6 is out of range; 'output' has 6 entries, so 0 to 5 (or -6 to -1 from the end).",
    ),
    "too many columns": (
        {"wrt": "embed", "cols": 9},
        "cols=9 asks for the first 9 entries of 'embed', which has 8; give 1 to 8, or leave cols out for all.",
    ),
    "no rows": (
        {"wrt": "embed", "rows": []},
        "rows is empty; leave it out for all 6 entries of 'output'.",
    ),
    "not an index": (
        {"wrt": "embed", "rows": [0.5]},
        "rows: 0.5 is no flat index into 'output'; give whole numbers.",
    ),
    "a word for rows": (
        {"wrt": "embed", "rows": "all"},
        "rows='all': give a number of entries or a list of flat indices.",
    ),
    "weights of the wrong width": (
        {"wrt": "embed", "weights": torch.ones(2, 4)},
        "weights must be [k, 6], one weight for each entry of 'output'; got [2, 4].",
    ),
    "rows and weights": (
        {"wrt": "embed", "rows": 1, "weights": torch.ones(6)},
        "rows and weights both say what the rows are; give one of them.",
    ),
    "sample out of range": (
        {"wrt": "embed", "samples": [3]},
        "samples: index 3 is out of range; 'input' has 3 entries, so 0 to 2 (or -3 to -1 from the end).",
    ),
    "engine": (
        {"wrt": "embed", "engine": "vmapp"},
        "engine='vmapp' is no engine. Did you mean 'vmap'? There are: auto, rank, columns, "
        "columns_math, forward, vmap, is_grads_batched, loop, differences.",
    ),
    "reduce": (
        {"wrt": "embed", "reduce": "sum"},
        "reduce='sum' means nothing here; give one of 'mean', 'rms', 'none'.",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_mistake_is_named_with_its_nearest_fix(name: str) -> None:
    options, text = TEXTS[name]
    with pytest.raises(JacobianError) as caught:
        gradlab.jacobian(Small(), torch.tensor([[1, 2], [3, 4], [5, 6]]), **options)
    assert str(caught.value) == text


def test_an_integer_output_is_named() -> None:
    class Argmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    with pytest.raises(JacobianError, match=r"^of='output' is int64, which cannot be differentiated\.$"):
        gradlab.jacobian(Argmax(), torch.randn(2, 3))


def test_samples_of_a_loss_cannot_be_told_apart() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(JacobianError) as caught:
        gradlab.jacobian(Loss(), torch.randn(3, 2), samples=[0])
    assert str(caught.value) == (
        "samples: of='output' [] and wrt='input' do not both begin with a sample axis, so samples cannot be told "
        "apart; leave samples out."
    )


def test_an_engine_that_was_insisted_on_fails_with_its_own_words() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return torch.from_numpy(grad.numpy() * 2)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Rounded.apply(x)

    with pytest.raises(
        JacobianError, match=r"^engine 'vmap' cannot compute this Jacobian\. RuntimeError: Cannot access"
    ):
        gradlab.jacobian(Model(), torch.randn(2, 3), engine="vmap")


def test_a_backward_that_always_fails_is_reported_plainly_and_replaced_by_differences() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no backward on this device")

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Broken.apply(x)

    with pytest.raises(JacobianError) as caught:
        gradlab.jacobian(Model(), torch.randn(2, 3), engine="loop")
    assert str(caught.value) == (
        "a plain backward fails here, so there is no Jacobian to measure: no backward on this device"
    )
    block = gradlab.jacobian(Model(), torch.randn(2, 3))
    assert block.engine == "differences"
    assert block.notes[-1].startswith("central differences, right to about three digits, since a plain backward fails")
    torch.testing.assert_close(torch.tensor(block.values), 2 * torch.eye(3), rtol=1e-3, atol=1e-3)


def test_lazy_parameters_want_a_forward_first() -> None:
    with pytest.raises(JacobianError, match="run one forward before taking a Jacobian"):
        gradlab.jacobian(nn.LazyLinear(3), torch.randn(2, 3))


def test_a_models_own_error_comes_through_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradlab.jacobian(nn.Linear(4, 3), torch.randn(2, 5))


def test_a_probe_with_too_few_samples_says_how_many_there_are() -> None:
    spec = JacobianSlice(of="output", wrt="input", samples=8)
    with pytest.raises(JacobianError) as caught:
        ReplayedSlice(spec, nn.Linear(2, 2), torch.randn(3, 2))
    assert str(caught.value) == (
        "JacobianSlice('output', 'input'): samples=8, but the probe batch has 3; give samples: 3 or a larger batch."
    )
