"""`gradlab.tap`: the identity, heard by who listens, with an error for what is no name or no tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gradlab
from gradlab.sites.named import listeners


class Doubles:
    """Hears of every named tensor, and puts twice of it in its place."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def named(self, name: str, value: Tensor) -> Tensor:
        self.names.append(name)
        return value * 2


def test_nobody_listening_means_the_tensor_itself() -> None:
    value = torch.ones(2)
    assert not listeners and gradlab.tap("here", value) is value


def test_each_listener_gets_what_the_one_before_has_returned() -> None:
    heard = [Doubles(), Doubles()]
    listeners.extend(heard)
    try:
        assert gradlab.tap("here", torch.ones(2)).tolist() == [4, 4]
    finally:
        del listeners[-2:]
    assert [one.names for one in heard] == [["here"], ["here"]]


@pytest.mark.parametrize(
    "name, value, says",
    [
        (3, torch.ones(1), "tap(): name must be a name, as text, got 3."),
        ("here", 1.0, "tap(): value must be a tensor, got 1.0."),
    ],
)
def test_what_cannot_be_named_is_refused(name: Any, value: Any, says: str) -> None:
    with pytest.raises(gradlab.TapError) as caught:
        gradlab.tap(name, value)
    assert str(caught.value) == says
