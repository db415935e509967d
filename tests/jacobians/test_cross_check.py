"""Against other libraries: torchjd, gradcheck, SciPy, and outer products that never make the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab

torchjd = pytest.importorskip("torchjd.autojac")


@pytest.mark.parametrize("engine", ["auto", "columns", "forward"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), (1, 6)),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.GroupNorm(3, 3), nn.Flatten()), (1, 2, 5, 5)),
        (lambda: nn.GRU(4, 3, batch_first=True), (1, 3, 4)),
    ],
)
def test_torchjd_agrees(make: Any, shape: tuple[int, ...], engine: str) -> None:
    model = make().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = model(x)
    suffix, out = ("[0]", out[0]) if isinstance(out, tuple) else ("", out)
    (expected,) = torchjd.jac(out.flatten(), x)
    block = gradlab.jacobian(model, x.detach(), of=f"output{suffix}", engine=engine)
    np.testing.assert_allclose(block.values, expected.flatten(1).numpy(), rtol=1e-10, atol=1e-13)


def test_gradcheck_agrees_that_the_models_are_differentiable_as_we_say() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)).double()
    x = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,), check_batched_grad=True, check_forward_ad=True)
    block = gradlab.jacobian(model, x.detach())
    direction = torch.randn(1, 3, dtype=torch.float64)
    numerical = (model(x + 1e-6 * direction) - model(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(block.values @ direction[0].numpy(), numerical[0].detach().numpy(), rtol=1e-6, atol=1e-8)


def test_scipys_svds_finds_the_same_leading_singular_values() -> None:
    sparse = pytest.importorskip("scipy.sparse.linalg")
    model = nn.Sequential(nn.Linear(120, 90), nn.Tanh(), nn.Linear(90, 80)).double()
    x = torch.randn(1, 120, dtype=torch.float64)
    expected = sparse.svds(gradlab.jacobian(model, x).values, k=3, return_singular_vectors=False, random_state=0)
    found = gradlab.jacobian(model, x, block=False, top=3).singular_values
    np.testing.assert_allclose(found, np.sort(expected)[::-1], rtol=0.01)


class Sequence(nn.Module):
    """A linear layer in the middle, at several positions of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu_(self.b(torch.tanh(self.a(x)))).mean(1))


@pytest.mark.parametrize("reduce", ["mean", "rms", "none"])
@pytest.mark.parametrize("name", ["a.weight", "a.bias", "b.weight", "b.bias", "head.weight", "head.bias"])
@pytest.mark.parametrize("options", [{}, {"cols": [2, 0, -1], "rows": [1, 0]}, {"samples": [2, 0]}])
def test_linear_layers_parameters_in_rank_form(name: str, reduce: Any, options: dict[str, Any]) -> None:
    model, x = Sequence().double(), torch.randn(3, 4, 4, dtype=torch.float64)
    block = gradlab.jacobian(model, x, wrt=name, reduce=reduce, **options)
    expected = gradlab.jacobian(model, x, wrt=name, reduce=reduce, engine="loop", **options)
    assert block.engine == "rank"
    assert block.audit_error < 1e-12
    np.testing.assert_allclose(block.values, expected.values, rtol=1e-10, atol=1e-13)


def test_a_layer_that_is_called_twice_or_whose_weight_is_tied_is_no_rank_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(torch.tanh(self.a(x)))

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.a(x)) @ self.a.weight

    for model in (Twice().double(), Tied().double()):
        x = torch.randn(1, 4, dtype=torch.float64)
        block = gradlab.jacobian(model, x, wrt="a.weight")
        assert block.engine == "vmap"
        expected = gradlab.jacobian(model, x, wrt="a.weight", engine="loop").values
        np.testing.assert_allclose(block.values, expected, rtol=1e-10)


def test_a_shared_fallback_follows_a_model_that_changes() -> None:
    """What was learned of a model is only how to compute, never what: weights, modes and samples are those of now."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    for mode in ("eval", "as_is", "eval", "as_is"):
        x = torch.randn(4, 4, dtype=torch.float64)
        model.train(mode == "as_is")
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        found = gradlab.jacobian(model, x, mode=mode, reduce="none")
        expected = torch.autograd.functional.jacobian(lambda x: _undisturbed(model, x), x)
        each = torch.stack([expected[i, :, i] for i in range(4)])
        np.testing.assert_allclose(found.values, each.numpy(), rtol=1e-9, atol=1e-12)


def _undisturbed(model: nn.Module, x: Tensor) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return torch.func.functional_call(model, buffers, (x,))


def test_forward_mode_that_drops_a_tangent_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in some scripted and compiled modules: the result is zeros, and no error."""
    model = nn.Linear(2, 20).double()
    x = torch.randn(1, 2, dtype=torch.float64)
    forward = gradlab.jacobian(model, x, engine="forward")
    np.testing.assert_allclose(forward.values, model.weight.detach().numpy(), rtol=1e-12)
    monkeypatch.setattr("torch.func.jvp", lambda run, at, tangents: (run(*at), torch.zeros(1, 20).double()))
    assert gradlab.jacobian(nn.Linear(2, 20).double(), x, engine="forward").audit_error > 0.5
