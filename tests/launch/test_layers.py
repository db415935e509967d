"""The table of layers: values where they belong, and a mark on what stands out."""

import math

import pytest
import torch
from torch import nn

from gradlab.frame import Finding
from gradlab.launch.layers import Layer, layer_table
from gradlab.launch.summary import Summary, answer_text, final_metrics, load_summary
from gradlab.runs.folder import RunFolder


@pytest.fixture
def model():
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))


def marks(model, norms, findings=()):
    return {layer.site: layer.mark for layer in layer_table(model, {"weight_grad.norm": norms}, findings) if layer.mark}


def test_layers_come_in_the_models_order_with_their_last_values(model):
    latest = {"weight_grad.norm": {"0.weight": 2.0}, "update_ratio": {"0.weight": 1e-3}}
    layers = layer_table(model, latest)
    assert [layer.site for layer in layers] == [name for name, _ in model.named_parameters()]
    assert layers[0] == Layer(site="0.weight", shape=(3, 3), parameters=9, gradient_norm=2.0, update_ratio=1e-3)
    assert layers[1] == Layer(site="0.bias", shape=(3,), parameters=3)


def test_gradients_of_like_size_carry_no_mark(model):
    norms = {name: 1.0 + index for index, (name, _) in enumerate(model.named_parameters())}
    assert marks(model, norms) == {}


@pytest.mark.parametrize(
    ("norm", "mark"),
    [
        (0.0, "zero gradient"),
        (math.nan, "non-finite gradient"),
        (math.inf, "non-finite gradient"),
        (250.0, "250 times its neighbours"),
        (0.005, "200 times below its neighbours"),
    ],
)
def test_what_is_off_is_marked(model, norm, mark):
    norms = {f"{index}.weight": 1.0 for index in range(4)} | {"2.weight": norm}
    assert marks(model, norms) == {"2.weight": mark}


@pytest.mark.parametrize("index", [0, 3])
def test_the_first_and_the_last_layer_are_held_against_the_two_nearest(model, index):
    norms = {f"{number}.weight": 1.0 for number in range(4)} | {f"{index}.weight": 1000.0}
    assert marks(model, norms) == {f"{index}.weight": "1000 times its neighbours"}


def test_two_layers_are_too_few_to_say_which_is_off():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert marks(model, {"0.weight": 1.0, "1.weight": 1e-6}) == {}


def test_weights_are_not_compared_with_biases(model):
    norms = {name: 1.0 if name.endswith("weight") else 1e-6 for name, _ in model.named_parameters()}
    assert marks(model, norms) == {}


def test_a_slow_change_over_depth_is_no_jump(model):
    assert marks(model, {f"{index}.weight": 50.0**-index for index in range(4)}) == {}


def test_frozen_parameters_are_marked_as_such(model):
    model[0].requires_grad_(False)
    assert marks(model, {"1.weight": 1.0}) == {"0.weight": "frozen", "0.bias": "frozen"}


def test_a_finding_of_an_earlier_step_is_remembered(model):
    finding = Finding(step=3, kind="nonfinite", site="1.weight", message="NaN")
    assert marks(model, {"1.weight": 1.0}, [finding]) == {"1.weight": "non-finite gradient"}


def test_without_watched_gradients_nothing_is_marked(model):
    assert marks(model, {}) == {}


def test_a_summary_is_read_back_as_it_was_written(tmp_path, model):
    run = RunFolder.create(tmp_path, "digits")
    summary = Summary(
        name="digits",
        run=run.id,
        folder=str(run.path),
        seconds=1.5,
        epochs=2,
        steps=30,
        metrics={"val/loss": 0.25},
        findings=(Finding(step=3, kind="zero_gradient", site="a", message="dead", evidence={"x": 1.0}),),
        answers={"slope": "2"},
        layers=tuple(layer_table(model, {"weight_grad.norm": {"0.weight": 2.0}})),
    )
    summary.save(run)
    assert load_summary(run) == summary


def test_a_run_without_a_summary_has_none(tmp_path):
    assert load_summary(RunFolder.create(tmp_path, "digits")) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (3, "3"),
        (0.123456, "0.1235"),
        (math.nan, "nan"),
        (torch.tensor(2.5), "2.5"),
        (torch.tensor([1.0, 2.0]), "[1, 2]"),
        (torch.tensor([[2.0, 3.0], [2.0, 4.5]]), "[[2, 3], [2, 4.5]]"),
        (torch.arange(20.0).reshape(4, 5), "4 x 5, from 0 to 19"),
        (torch.tensor([True, False]), "[1, 0]"),
    ],
)
def test_answers_are_text(value, text):
    assert answer_text(value) == text


def test_metrics_are_numbers_sorted_by_name():
    assert final_metrics({"b": torch.tensor(2.0), "a": 1}) == {"a": 1.0, "b": 2.0}
