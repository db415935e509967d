"""Norms of long tensors against float64."""

from __future__ import annotations

import pytest
import torch

from gradlab.stats.norms import LONG, norm_into

KINDS = {
    "contiguous": lambda x: x,
    "odd": lambda x: x[:-12_345],
    "channels last": lambda x: x[: 1 << 22].view(16, 64, 64, 64).contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.view(2048, -1).T,
    "strided": lambda x: x.view(1024, 4, -1)[:, ::2],
    "every other": lambda x: x[::2],
    "expanded": lambda x: x[:1].expand(1 << 22),
    "a column": lambda x: x.view(-1, 1),
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_a_long_tensor_is_that_of_float64(kind: str) -> None:
    x = KINDS[kind](torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)) + 0.5)
    out = torch.zeros(())
    norm_into(x, out)
    assert out.item() == pytest.approx(x.double().norm().item(), rel=5e-6 if kind == "expanded" else 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_long_tensor_that_is_not_finite_has_no_finite_norm(bad: float) -> None:
    x, out = torch.ones(3 * LONG + 1), torch.zeros(())
    x[-1] = bad
    norm_into(x, out)
    assert not out.isfinite()
