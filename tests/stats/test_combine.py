"""Parts of several tensors combined are those of their concatenation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab.stats.combine import combine, shift_bins
from gradlab.stats.parts import HIST_EDGES, PARTS, WIDTHS


def part_of(part: str, x: Tensor) -> np.ndarray:
    """A part of a tensor: [] float64, or [bins]."""
    out = torch.zeros(WIDTHS[part]) if part in WIDTHS else torch.zeros(())
    PARTS[part](x, out)
    return out.double().numpy()


def pieces_of(x: Tensor, lengths: list[int]) -> list[Tensor]:
    return list(x.split(lengths))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("lengths", [[40], [10, 30], [0, 25, 15], [1, 1, 38]])
def test_combined_parts_are_those_of_the_concatenation(part: str, lengths: list[int]) -> None:
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(len(lengths))) + 3.0
    x[::7] = 0.0
    tensors = pieces_of(x, lengths)
    arrays = {name: np.stack([part_of(name, one)[None] for one in tensors]) for name in {part, "sum"}}
    counts = np.array([[float(one.numel())] for one in tensors])
    np.testing.assert_allclose(combine(part, arrays, counts)[0], part_of(part, x), rtol=1e-5)


def test_a_users_own_stat_is_that_of_the_last_piece_with_a_value() -> None:
    pieces, counts = np.array([[1.0, 4.0], [2.0, 5.0]]), np.array([[3.0, 3.0], [3.0, 0.0]])
    assert combine("mine", {"mine": pieces}, counts).tolist() == [2.0, 4.0]


def test_shifted_bins_are_those_of_the_divided_tensor() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    shifted = shift_bins(part_of("hist", x)[None], 3)
    assert np.array_equal(shifted[0], part_of("hist", x / 2**3)) and len(shifted[0]) == len(HIST_EDGES) - 1
