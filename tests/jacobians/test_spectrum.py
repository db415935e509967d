"""Summaries of a block against NumPy, and what they say of matrices with no inverse or no numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab.jacobians import spectrum
from gradlab.jacobians.spectrum import leading_singular_values, singular_values, summarise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (10, 200), (64, 64)])
def test_singular_values_are_those_of_numpy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, dtype=dtype)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(singular_values(matrix).numpy(), expected, rtol=0, atol=tolerance * expected[0])


def test_the_summary_follows_from_the_singular_values() -> None:
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    r, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    sigma = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    found = summarise(q[:, :4] * sigma @ r).scalars
    share = np.array([4, 2, 1, 1]) / 8
    assert found == pytest.approx(
        {
            "nonfinite": 0,
            "fro": math.sqrt(22),
            "sigma_1": 4,
            "sigma_min": 1,
            "cond": 4,
            "effective_rank": math.exp(-(share * np.log(share)).sum()),
            "participation_rank": 22**2 / (256 + 16 + 1 + 1),
            "stable_rank": 22 / 16,
        }
    )


def test_an_orthogonal_matrix_has_full_rank_in_every_sense() -> None:
    q, _ = torch.linalg.qr(torch.randn(9, 9))
    found = summarise(q).scalars
    assert [found[name] for name in ("cond", "effective_rank", "stable_rank")] == pytest.approx([1, 9, 9], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_not_taken_for_rank(dtype: torch.dtype) -> None:
    p = torch.randn(8, dtype=dtype).softmax(-1)
    found = summarise(p.diag() - p[:, None] * p).scalars
    assert found["sigma_min"] == 0
    assert found["cond"] == math.inf


def test_a_zero_matrix_has_no_condition() -> None:
    found = summarise(torch.zeros(3, 4)).scalars
    assert found["fro"] == found["sigma_1"] == found["effective_rank"] == found["stable_rank"] == 0
    assert math.isnan(found["cond"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_is_counted_and_nothing_else(bad: float) -> None:
    matrix = torch.randn(3, 4)
    matrix[1, 2] = bad
    summary = summarise(matrix)
    assert summary.scalars.pop("nonfinite") == 1
    assert all(math.isnan(value) for value in summary.scalars.values())
    assert summary.singular_values.numel() == 0


def test_a_large_matrix_has_its_norm_and_its_leading_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "EXACT_UP_TO", 30)
    matrix: Tensor = torch.randn(100, 80)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    summary = summarise(matrix, top=4)
    assert not summary.complete
    np.testing.assert_allclose(summary.singular_values.numpy(), expected[:4], rtol=0.01)
    assert summary.scalars == pytest.approx(
        {
            "nonfinite": 0.0,
            "fro": float(matrix.norm()),
            "sigma_1": float(summary.singular_values[0]),
            "stable_rank": float(matrix.norm() / summary.singular_values[0]) ** 2,
        }
    )
    assert summarise(matrix[:30]).complete


@pytest.mark.parametrize("decay", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("shape", [(200, 90), (60, 300)])
def test_block_krylov_finds_the_leading_singular_values(decay: float, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    k = min(shape)
    u, _ = torch.linalg.qr(torch.randn(shape[0], k, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], k, generator=generator, dtype=torch.float64))
    sigma = torch.arange(1, k + 1, dtype=torch.float64) ** -decay
    matrix = u * sigma @ v.T
    start = torch.randn(16, shape[1], generator=generator, dtype=torch.float64)
    found = leading_singular_values(lambda rows: rows @ matrix.T, lambda rows: rows @ matrix, start, 8)
    torch.testing.assert_close(found, sigma[:8], rtol=0.02, atol=0)
