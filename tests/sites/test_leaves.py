"""The tensors inside a value: found with their suffixes, and replaced without touching what is around them."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.sites.leaves import first_differentiable, has_floating, leaves, replace_leaves

Pair = namedtuple("Pair", "first second")


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None


def x(value: float = 0.0, **options: Any) -> Tensor:
    return torch.full((2,), value, **options)


VALUES = [
    (x(), [""]),
    ((x(), 3, [x(), None]), ["[0]", "[2][0]"]),
    ({"a": x(), "b": (x(),), 7: x()}, ["[a]", "[b][0]", "[7]"]),
    (OrderedDict(a=x()), ["[a]"]),
    (Pair(x(), "text"), ["[0]"]),
    (Output(x(), (x(), x())), ["[logits]", "[hidden][0]", "[hidden][1]"]),
    ("text", []),
    (Output, []),
    (None, []),
]


@pytest.mark.parametrize("value, suffixes", VALUES)
def test_every_tensor_is_found_and_can_be_replaced(value: Any, suffixes: list[str]) -> None:
    assert [suffix for suffix, _ in leaves(value)] == suffixes
    new = {suffix: x(number + 1.0) for number, suffix in enumerate(suffixes)}
    replaced = replace_leaves(value, new)
    assert type(replaced) is type(value)
    assert all(tensor is new[suffix] for suffix, tensor in leaves(replaced))
    assert all(float(tensor.sum()) == 0 for _, tensor in leaves(value))
    assert replace_leaves(value, {}) is value


def test_the_first_tensor_that_a_backward_comes_through() -> None:
    wanted = x(requires_grad=True)
    assert first_differentiable(wanted) is wanted and first_differentiable(x()) is None
    assert first_differentiable({"a": x(), "b": [wanted, x(requires_grad=True)]}) is wanted
    assert first_differentiable([x(), None, "text"]) is None


def test_only_numbers_that_may_have_a_gradient_count_as_floating() -> None:
    assert has_floating([None, x(dtype=torch.float16)]) and has_floating(x(dtype=torch.complex64))
    assert not has_floating((x(dtype=torch.int64), x(dtype=torch.bool), "text"))
