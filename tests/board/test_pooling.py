"""Pooling loses neither a spike nor a value that is not finite, and puts nothing in that was not there."""

import numpy as np
import pytest

from gradlab.board import pooling as table
from gradlab.board.metrics import ordered
from gradlab.frame import ABSENT


def cells_of(values, steps=None):
    values = np.asarray(values, np.float32)
    return table.from_values(np.arange(len(values)) if steps is None else np.asarray(steps), values)


@pytest.mark.parametrize("columns", [1, 7, 99, 100, 1000])
def test_a_pool_keeps_extremes_mean_and_what_is_not_finite(columns):
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    values[500, 0], values[501, 1], values[502, 1] = np.nan, np.inf, -np.inf
    values[100:900, 2] = ABSENT
    pooled = table.pool(cells_of(values), columns)
    assert len(pooled) <= columns
    assert (pooled.first[1:] == pooled.last[:-1] + 1).all()
    for column, (first, last) in enumerate(zip(pooled.first, pooled.last, strict=True)):
        part = values[first : last + 1].astype(np.float64)
        for site in range(3):
            finite = part[np.isfinite(part[:, site]), site]
            absent = (values[first : last + 1, site].view(np.uint32) == ABSENT.view(np.uint32)).sum()
            assert pooled.bad[column, site] == len(part) - len(finite) - absent
            if pooled.single:
                continue
            if not len(finite):
                assert np.isnan([pooled.low[column, site], pooled.mean[column, site], pooled.high[column, site]]).all()
                continue
            seen = (pooled.low[column, site], pooled.mean[column, site], pooled.high[column, site])
            np.testing.assert_allclose(seen, (finite.min(), finite.mean(), finite.max()), rtol=1e-5, atol=1e-6)


def test_what_fits_is_left_as_it_is():
    values = [[1.0, np.nan], [np.inf, 2.0]]
    cells = table.pool(cells_of(values), 2)
    assert cells.single
    np.testing.assert_array_equal(cells.mean, np.float32(values))
    np.testing.assert_array_equal(cells.bad, [[0, 1], [1, 0]])


def test_rows_are_pooled_alike():
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    values[1, 4] = np.nan
    pooled, starts = table.pool_sites(cells_of(values), 3)
    assert starts.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(pooled.low, [[0, 2, 4], [6, 8, 11]])
    np.testing.assert_array_equal(pooled.high, [[1, 3, 5], [7, 9, 11]])
    np.testing.assert_array_equal(pooled.bad, [[0, 0, 0], [0, 0, 1]])


def test_sets_of_sites_become_one_table():
    old = cells_of([[1, 2], [3, 4]], steps=[0, 10])
    new = cells_of([[5], [6]], steps=[10, 11])
    merged = table.merge([(("a", "b"), old), (("c",), new)], ("a", "b", "c"))
    assert merged.last.tolist() == [0, 10, 11]
    np.testing.assert_array_equal(merged.mean, [[1, 2, np.nan], [3, 4, 5], [np.nan, np.nan, 6]])
    assert not merged.bad.any()


def test_where_two_sets_have_a_site_the_one_with_a_value_holds():
    sparse = cells_of([[1], [ABSENT]], steps=[0, 1])
    dense = cells_of([[ABSENT], [2]], steps=[0, 1])
    merged = table.merge([(("a",), sparse), (("a",), dense)], ("a",))
    np.testing.assert_array_equal(merged.mean, [[1], [2]])


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([["a", "b"]], "ab"),
        ([["a", "c"], ["a", "b", "c"]], "abc"),
        ([["b", "x"], ["a", "b", "c"]], "abxc"),
        ([["a"], ["b"]], "ba"),
    ],
)
def test_sites_of_all_sets_stay_in_order(lists, expected):
    assert sorted(ordered(lists)) == sorted(expected)
    if expected != "ba":
        assert "".join(ordered(lists)) == expected
