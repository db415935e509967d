"""48 module types and more, several of which every public way of batching fails on: none fails here."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from jacobians.awkward import CASES, reference
from jacobians.matrix import ROWS, by_differences

import gradlab


def test_the_matrix_has_at_least_48_module_types() -> None:
    assert len(CASES.keys() | ROWS.keys()) >= 48
    assert not CASES.keys() & ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_it_equals_plain_backwards_or_differences(name: str) -> None:
    row = ROWS[name]
    torch.manual_seed(1)
    model = row.make().to(row.dtype).eval()
    model.train(name.endswith("_train"))
    x = torch.randn(row.shape, dtype=row.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        torch.manual_seed(5)
        expected = by_differences(copy.deepcopy(model), x) if row.differences else reference(model, x)
        torch.manual_seed(5)
        block = gradlab.jacobian(model, x, reduce="none", mode="as_is")
    scale = float(expected.abs().max())
    np.testing.assert_allclose(block.values, expected.numpy(), rtol=0, atol=row.tolerance * scale)
    assert block.audit_error < (2e-2 if row.dtype == torch.float32 else 1e-12)
    assert (block.engine == "differences") == row.differences


def test_a_compiled_model_is_measured_eagerly() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 3)).double()
    model = torch.compile(copy.deepcopy(plain), backend="aot_eager")
    x = torch.randn(2, 4, dtype=torch.float64)
    model(x).sum().backward()
    np.testing.assert_array_equal(gradlab.jacobian(model, x).values, gradlab.jacobian(plain, x).values)
    torch._dynamo.reset()
