"""The inputs of a forward: tensors, tuples and mappings are called, copied and cut to samples alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.jacobians.inputs import call, copied, count_samples, first_samples, inputs_of_call, replicas
from gradlab.sites.leaves import leaves


class Scaled(nn.Module):
    """Two arguments, one with samples."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


X, SCALE = torch.arange(6.0).view(3, 2), torch.tensor(2.0)
FORMS: list[Any] = [(X, SCALE), {"x": X, "scale": SCALE}]


@pytest.mark.parametrize("inputs", FORMS)
def test_a_tuple_and_a_mapping_are_called_alike(inputs: Any) -> None:
    assert torch.equal(call(Scaled(), inputs), 2 * X)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    assert torch.equal(call(Scaled(), inputs_of_call(args, kwargs)), 2 * X)


def test_one_tensor_needs_no_tuple() -> None:
    assert inputs_of_call((X,), {}) is X
    assert torch.equal(call(nn.Identity(), X), X)


@pytest.mark.parametrize("inputs", [X, *FORMS])
def test_copies_share_no_memory(inputs: Any) -> None:
    for (_, before), (_, after) in zip(leaves(inputs), leaves(copied(inputs)), strict=True):
        assert torch.equal(before, after)
        assert before.data_ptr() != after.data_ptr()


@pytest.mark.parametrize(
    ("inputs", "batched", "count"),
    [(X, None, 3), (X[0], None, None), (X[0], True, 2), (X, False, None), (SCALE, True, None), ((), None, None)],
)
def test_samples_are_counted_on_axis_0_of_the_first_tensor(inputs: Any, batched: bool | None, count: int) -> None:
    assert count_samples(inputs, batched) == count


@pytest.mark.parametrize("inputs", FORMS)
def test_samples_are_cut_only_where_there_are_samples(inputs: Any) -> None:
    assert torch.equal(call(Scaled(), first_samples(inputs, 2)), 2 * X[:2])
    assert torch.equal(call(Scaled(), replicas(inputs, batch=3, sample=1, count=4)), 2 * X[[1, 1, 1, 1]])


def test_too_few_samples_are_an_error_unless_fewer_will_do() -> None:
    assert torch.equal(first_samples(X, 5, exact=False), X)
    with pytest.raises(JacobianError, match="samples=5, but the probe batch has 3"):
        first_samples(X, 5)
