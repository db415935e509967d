"""The audit: what it catches, and that it does not cry wolf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab.jacobians.engines import fallback
from gradlab.jacobians.engines.problem import Problem
from gradlab.jacobians.engines.rows import by_vmap, rows
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.replayed import ReplayedSlice

MODEL = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def one_entry_off(problem: Problem) -> Tensor:
    blocks = rows(problem, by_vmap)
    blocks[..., 1, 2] += 1e-3
    return blocks


def rows_swapped(problem: Problem) -> Tensor:
    return rows(problem, by_vmap).flip(1)


def all_zero(problem: Problem) -> Tensor:
    """What forward mode gives where a tangent was dropped."""
    return torch.zeros_like(rows(problem, by_vmap))


def samples_swapped(problem: Problem) -> Tensor:
    return rows(problem, by_vmap).flip(0)


WRONG: list[Callable[[Problem], Tensor]] = [one_entry_off, rows_swapped, all_zero, samples_swapped]


@pytest.mark.parametrize("engine", WRONG)
def test_a_wrong_engine_is_found_out(engine: Callable[[Problem], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fallback.ENGINES, "vmap", engine)
    block = gradlab.jacobian(MODEL, torch.randn(2, 6).double(), reduce="none", engine="vmap")
    assert block.audit_error > 1e-5


@pytest.mark.parametrize("engine", WRONG)
def test_a_wrong_engine_is_given_up_for_the_next(
    engine: Callable[[Problem], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 6).double()
    right = gradlab.jacobian(MODEL, x, reduce="none").values
    monkeypatch.setitem(fallback.ENGINES, "vmap", engine)
    block = gradlab.jacobian(MODEL, x, reduce="none")
    assert block.engine == "is_grads_batched"
    assert block.notes[0].startswith("vmap refused: its audit error is ")
    assert block.audit_error < 1e-12
    np.testing.assert_allclose(block.values, right, rtol=1e-12)


def test_a_backward_that_cannot_be_differentiated_gives_no_zero_columns() -> None:
    class Detaching(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 3

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return (grad * 3).detach()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(2, 12)

        def forward(self, x: Tensor) -> Tensor:
            h = self.wide(x)
            return h + Detaching.apply(h)

    model = Model()
    block = gradlab.jacobian(model, torch.randn(1, 2))
    assert block.engine == "vmap"
    assert [note.split(":")[0] for note in block.notes] == [
        "columns refused",
        "columns_math refused",
        "forward refused",
    ]
    np.testing.assert_allclose(block.values, 4 * model.wide.weight.detach().numpy(), rtol=1e-6)


def test_a_cancelling_vector_is_no_alarm() -> None:
    """Behind a softmax of two, v = ±(1, 1) has vᵀJ = 0 up to rounding; half of all steps draw such a v."""
    probe = ReplayedSlice(JacobianSlice(of="output", wrt="input"), nn.Softmax(-1), torch.randn(1, 2))
    blocks = [probe.measure(step) for step in range(12)]
    assert max(block.audit_error for block in blocks) < 1e-6
    assert {block.engine for block in blocks} == {"vmap"}


def test_a_jacobian_of_zeros_has_no_error() -> None:
    block = gradlab.jacobian(nn.ReLU(), -torch.ones(1, 3))
    assert block.audit_error == 0
    assert block.summaries["fro"] == 0


def test_a_jacobian_that_is_not_finite_is_labelled_not_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    block = gradlab.jacobian(Root(), torch.tensor([[0.0, 4.0]]))
    assert block.engine == "vmap"
    assert np.isinf(block.values[0, 0])
    assert np.isnan(block.audit_error)
    assert block.summaries["nonfinite"] >= 1
    assert all(np.isnan(value) for name, value in block.summaries.items() if name != "nonfinite")
