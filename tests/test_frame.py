"""What a step's values are to whoever holds them: mappings that answer, compare, travel, and stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

import gradlab
from gradlab.frame import ABSENT, Frame, Schema, Series

SITES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def series(*numbers: float, sites: tuple[str, ...] = SITES) -> Series:
    return Series(Schema("weight_grad.norm", sites), np.array(numbers, np.float32))


NORMS = series(0.5, np.nan, ABSENT, 2.0)
COUNTS = Series(
    Schema("output.hist", ("a", "b"), edges=(0.0, 1.0, 2.0, 3.0)), np.arange(6, dtype=np.float32).reshape(2, 3)
)


def test_what_a_monitor_gives_is_a_mapping_from_site_to_float() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer) as monitor:
        model(torch.randn(2, 4)).sum().backward()
        expected = {name: float(p.grad.norm()) for name, p in model.named_parameters()}
        optimizer.step()
        norms = monitor.latest()["weight_grad.norm"]
    assert isinstance(norms, Mapping)
    assert dict(norms) == norms.present() == pytest.approx(expected)
    assert list(norms) == ["weight", "bias"]
    assert "weight" in norms
    assert norms.get("wieght") is None
    assert norms.get("wieght", 3.0) == 3.0
    with pytest.raises(KeyError) as caught:
        norms["wieght"]
    assert str(caught.value) == "weight_grad.norm has no site 'wieght'. Did you mean 'weight'?"
    assert isinstance(caught.value, gradlab.GradlabError)


@pytest.mark.parametrize("mapping", [NORMS, COUNTS, series(sites=()), Frame(3, 1.0, {"m": NORMS})], ids=repr)
def test_the_laws_of_a_mapping(mapping: Mapping) -> None:
    names = list(mapping)
    assert len(mapping) == len(names) == len(list(mapping.values())) == len(list(mapping.items()))
    assert list(mapping.keys()) == names
    for (name, value), other in zip(mapping.items(), mapping.values(), strict=True):
        assert name in mapping
        for same in (mapping[name], mapping.get(name), dict(mapping)[name], other):
            np.testing.assert_equal(same, value)
        assert (name, value) in mapping.items()
        assert value in mapping.values()
    for wrong in ("nothing", 0, None, [], slice(None)):
        assert wrong not in mapping
        assert mapping.get(wrong) is None
        with pytest.raises(KeyError):
            mapping[wrong]
    assert ("nothing", 1.0) not in mapping.items()
    assert mapping == dict(mapping)
    assert dict(mapping) == mapping
    assert mapping != {**mapping, "nothing": 1.0}


def test_a_site_without_a_value_is_nan_and_not_present() -> None:
    assert np.isnan(NORMS["fc2.weight"])
    assert list(NORMS.present()) == ["fc1.weight", "fc1.bias", "fc2.bias"]
    empty = Series(COUNTS.schema, np.array([[ABSENT] * 3, [1, 2, 3]], np.float32))
    assert list(empty.present()) == ["b"]


def test_nan_equals_nan_but_not_a_site_without_a_value() -> None:
    assert series(0.5, -np.nan, ABSENT, 2.0) == NORMS
    assert hash(NORMS) == hash(series(0.5, -np.nan, ABSENT, 2.0))
    assert series(0.5, np.nan, np.nan, 2.0) != NORMS
    assert series(0.0, 1, 1, 1) == series(-0.0, 1, 1, 1)
    assert hash(series(0.0, 1, 1, 1)) == hash(series(-0.0, 1, 1, 1))
    assert Series(Schema("weight.norm", SITES), NORMS.array) != NORMS


def test_a_series_of_a_caller_is_of_the_right_size_and_of_numbers() -> None:
    schema = Schema("weight_grad.norm", SITES)
    assert Series(schema, [1, 2, 3, 4]).array.dtype == np.float32
    for schema_, array, message in [
        (schema, [1.0, 2.0], "Series(array=...) has the shape [2]; weight_grad.norm is of 4 sites."),
        (schema, "abc", "Series(array=...) is an array of numbers; got 'abc'."),
        (3, [1.0], "Series(schema=...) is a gradlab.frame.Schema; got 3."),
    ]:
        with pytest.raises(gradlab.GradlabError) as caught:
            Series(schema_, array)
        assert str(caught.value) == message


def test_one_readable_line_each() -> None:
    many = Series(Schema("weight_grad.norm", tuple(f"layer.{i}" for i in range(1000))), np.ones(1000, np.float32))
    assert repr(NORMS) == "Series(weight_grad.norm, 4 sites: fc1.weight=0.5, fc1.bias=nan, fc2.weight=absent, ...)"
    assert repr(many) == "Series(weight_grad.norm, 1000 sites: layer.0=1, layer.1=1, layer.2=1, ...)"
    assert repr(COUNTS) == "Series(output.hist, 2 sites x 3 bins: a=[0, 1, 2], b=[3, 4, 5])"
    assert repr(COUNTS.schema) == "Schema(output.hist, 2 sites x 3 bins: a, b)"
    assert repr(Frame(3, 1.0, {"m": NORMS})) == "Frame(step 3, 1 metric: m [4 sites])"


def test_a_missing_metric_is_named_with_those_near_it() -> None:
    frame = Frame(3, 1.0, {"weight_grad.norm": NORMS})
    with pytest.raises(KeyError) as caught:
        frame["weigth_grad.norm"]
    assert str(caught.value) == "step 3 has no metric 'weigth_grad.norm'. Did you mean 'weight_grad.norm'?"
    with pytest.raises(KeyError) as caught:
        frame["x"]
    assert str(caught.value) == "step 3 has no metric 'x'. It has: weight_grad.norm."


def test_what_is_held_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        NORMS.array[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        COUNTS["a"][0] = 1.0
    with pytest.raises(AttributeError):
        NORMS.array = NORMS.array
    with pytest.raises(TypeError):
        Frame(3, 1.0, {"m": NORMS}).series["m"] = NORMS
    given = {"m": NORMS}
    frame = Frame(3, 1.0, given)
    given.clear()
    assert len(frame) == 1
