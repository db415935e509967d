"""The options of what is logged of Jacobians: which are refused and how that is said, and what they have in common."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import gradlab
from gradlab.errors import JacobianError
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Sharpness, Slice


def test_a_slice_is_described_once() -> None:
    names = {field.name for field in fields(Slice)}
    assert issubclass(JacobianSlice, Slice)
    assert names <= inspect.signature(gradlab.jacobian).parameters.keys()
    assert {field.name for field in fields(JacobianSlice)} - names == {
        "every", "samples", "mode", "train", "probe", "label"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 0}, "JacobianSlice('output', 'input'): every must be a whole number from 1, got 0."),
        ({"samples": True}, "JacobianSlice('output', 'input'): samples must be a whole number from 1, got True."),
        (
            {"of_map": "relu"},
            "JacobianSlice('output', 'input'): of_map must be 'softmax' or left out, got 'relu'.",
        ),
    ],
)
def test_a_slice_that_means_nothing_is_refused_when_it_is_written(options: Any, text: str) -> None:
    with pytest.raises(JacobianError) as caught:
        JacobianSlice(of="output", wrt="input", **options)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JacobianSlice(of="a", wrt="b", mode="dead"), "mode must be 'replay' or 'live', got 'dead'."),
        (lambda: JacobianSlice(of="a", wrt="b", reduce="max"), "reduce must be 'mean' or 'rms' or 'none', got 'max'."),
        (
            lambda: JacobianSlice(of="a", wrt="b", rows=1, groups={"c": [0]}),
            "rows and groups both say",
        ),
        (
            lambda: DepthGrowth(at="x", directions=0),
            "directions must be a whole number from 1, got 0.",
        ),
        (lambda: Sharpness(top=0), "Sharpness: top must be a whole number from 1, got 0."),
    ],
)
def test_mistakes_in_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(JacobianError) as caught:
        make()
    assert message in str(caught.value)


def test_a_live_slice_has_a_block() -> None:
    with pytest.raises(JacobianError, match="block=False needs mode='replay'"):
        JacobianSlice(of="output", wrt="input", mode="live", block=False)
    with pytest.raises(JacobianError, match="train and probe are for mode='replay'"):
        JacobianSlice(of="output", wrt="input", mode="live", probe="validation")
