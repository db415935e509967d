"""Norm and leading singular values without the block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradlab
from gradlab.jacobians import matrix_free
from gradlab.jacobians.engines.columns import transposed
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.matrix_free import Operator, estimate_frobenius
from gradlab.jacobians.measure import replayed_problem
from gradlab.jacobians.options import Slice
from gradlab.jacobians.request import Request

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    MODEL = nn.Sequential(nn.Linear(150, 120), nn.GELU(), nn.Linear(120, 100)).double()
WITHOUT_BLOCK = Request(slice=Slice(of="output", wrt="input", block=False))
X = torch.randn(2, 150, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_agrees_with_the_explicit_block() -> None:
    block = gradlab.jacobian(MODEL, X, block=False, top=4)
    assert block.values.shape == (0, 0)
    assert not block.complete
    assert block.audit_error < 1e-12
    explicit = [gradlab.jacobian(MODEL, X[i : i + 1]) for i in range(2)]
    fro = np.mean([one.summaries["fro"] for one in explicit])
    assert block.summaries["fro"] == pytest.approx(fro, rel=0.1)
    assert block.summaries["fro_lo"] < block.summaries["fro"] < block.summaries["fro_hi"]
    for found, one in zip(block.singular_values, explicit, strict=True):
        np.testing.assert_allclose(found, one.singular_values[:4], rtol=0.01)


def test_it_agrees_for_a_slice_and_for_weights() -> None:
    rows, cols = list(range(5, 95)), list(range(10, 140))
    block = gradlab.jacobian(MODEL, X[:1], rows=rows, cols=cols, block=False)
    explicit = gradlab.jacobian(MODEL, X[:1], rows=rows, cols=cols)
    np.testing.assert_allclose(block.singular_values[:3], explicit.singular_values[:3], rtol=0.01)
    weights = torch.randn(3, 100, dtype=torch.float64)
    block = gradlab.jacobian(MODEL, X[:1], weights=weights, block=False)
    np.testing.assert_allclose(
        block.singular_values, gradlab.jacobian(MODEL, X[:1], weights=weights).singular_values, rtol=1e-9
    )


def test_a_short_side_is_done_exactly() -> None:
    model = nn.Linear(300, 20).double()
    block = gradlab.jacobian(model, torch.randn(1, 300).double(), block=False)
    expected = np.linalg.svd(model.weight.detach().numpy(), compute_uv=False)
    np.testing.assert_allclose(block.singular_values, expected, rtol=1e-9)
    assert block.complete
    assert block.summaries["fro_lo"] == block.summaries["fro"] == block.summaries["fro_hi"]


def test_the_interval_covers_the_norm_as_often_as_it_says() -> None:
    with replayed_problem(MODEL, X[:1], WITHOUT_BLOCK, Fallback("columns")) as problem:
        operator = Operator(problem, 0, transposed(problem))
        true = gradlab.jacobian(MODEL, X[:1]).summaries["fro"]
        generator = torch.Generator().manual_seed(0)
        intervals = [estimate_frobenius(operator, generator) for _ in range(300)]
    covered = np.mean([low <= true <= high for _, low, high in intervals])
    assert 0.91 <= covered <= 0.99
    assert np.mean([fro for fro, _, _ in intervals]) == pytest.approx(true, rel=0.01)


def test_through_fused_attention_plain_kernels_are_used() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).double()
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    block = gradlab.jacobian(layer, x, block=False, top=2)
    assert block.engine == "columns_math"
    np.testing.assert_allclose(block.singular_values, gradlab.jacobian(layer, x).singular_values[:2], rtol=0.02)


def test_estimates_are_cheaper_than_the_block() -> None:
    """Products, not time: a few dozen vectors where the block takes a backward a row."""
    pulled: list[int] = []
    by_vmap = matrix_free.by_vmap

    def counting(of: object, wrt: object, cotangents: torch.Tensor) -> torch.Tensor:
        pulled.append(len(cotangents))
        return by_vmap(of, wrt, cotangents)  # type: ignore[arg-type]

    model = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 500))
    with replayed_problem(model, torch.randn(1, 500), WITHOUT_BLOCK, Fallback("columns")) as problem:
        operator = Operator(problem, 0, transposed(problem), counting)
        matrix_free._summary(operator, 4, torch.Generator())
    assert sum(pulled) < 200


def test_where_there_is_no_product_with_j_the_norm_is_left() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 3

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(80, 90)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Once.apply(self.a(x))

    model = Model()
    block = gradlab.jacobian(model, torch.randn(1, 80), block=False)
    assert [note.split(":")[0] for note in block.notes] == ["columns refused", "columns_math refused"]
    true = 3 * float(model.a.weight.detach().norm())
    assert block.summaries["fro_lo"] <= true <= block.summaries["fro_hi"]
    assert block.singular_values.size == 0 and "sigma_1" not in block.summaries
    assert block.audit_error < 1e-5
