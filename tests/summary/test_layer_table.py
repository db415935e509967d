"""The table of layers: values where they belong, and a mark on what stands out."""

import math

import pytest
import torch
from torch import nn

from gradlab.finding import Finding
from gradlab.launch.summary import Summary, answer_text, final_metrics, load_summary
from gradlab.runs.folder import RunFolder
from gradlab.summary.layer_table import Layer, layer_table


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


class Attention(nn.Module):
    """A linear layer for each of queries, keys and values: the bias of the keys moves no softmax."""

    def __init__(self):
        super().__init__()
        self.enter, self.query, self.key, self.value, self.leave = (nn.Linear(16, 16) for _ in range(5))

    def forward(self, x):
        x = self.enter(x)
        weights = (self.query(x) @ self.key(x).transpose(-1, -2) / 4).softmax(-1)
        return self.leave(weights @ self.value(x))


def blocks(layer, norm, width):
    return nn.Sequential(*(part for _ in range(4) for part in (layer(), norm(width), nn.ReLU())), layer())


HEALTHY = {
    "batch norm": (lambda: blocks(lambda: nn.Linear(16, 16), nn.BatchNorm1d, 16), (64, 16)),
    "layer norm": (lambda: blocks(lambda: nn.Linear(16, 16), nn.LayerNorm, 16), (64, 16)),
    "convolutions": (lambda: blocks(lambda: nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d, 4), (8, 4, 16, 16)),
    "instance norm": (lambda: blocks(lambda: nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d, 4), (8, 4, 16, 16)),
    "attention": (Attention, (4, 24, 16)),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), (4, 24, 16)),
}


def gradient_norms(model, shape, precision):
    target = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        loss = (model(torch.randn(shape)).float() - target).square().mean()
    loss.backward()
    return {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_has_no_marks_though_rounding_is_all_the_gradient_of_a_bias(name, precision):
    make, shape = HEALTHY[name]
    model = make()
    norms = gradient_norms(model, shape, precision)
    assert [layer.mark for layer in layer_table(model, {"weight_grad.norm": norms}, precision=precision)] == [""] * len(
        norms
    )


@pytest.mark.parametrize("name", ["batch norm", "convolutions", "attention"])
def test_planted_faults_among_rounding_errors_are_marked(name):
    make, shape = HEALTHY[name]
    model = make()
    norms = gradient_norms(model, shape, None)
    weight = [site for site in norms if site.endswith("weight") and norms[site] > 1e-4][2]
    for factor, words in ((1e-5, "times below its neighbours"), (1e5, "times its neighbours")):
        assert words in marks(model, norms | {weight: factor * norms[weight]})[weight]
    bias = [site for site in norms if site.endswith("bias")][-1]
    assert "times its neighbours" in marks(model, norms | {bias: 1e5 * norms[bias]})[bias]


def test_a_slow_change_over_depth_is_no_jump(model):
    assert marks(model, {f"{index}.weight": 50.0**-index for index in range(4)}) == {}


def test_frozen_parameters_are_marked_as_such(model):
    model[0].requires_grad_(False)
    assert marks(model, {"1.weight": 1.0}) == {"0.weight": "frozen", "0.bias": "frozen"}


def test_a_finding_of_an_earlier_step_is_remembered(model):
    finding = Finding(first_step=3, name="nonfinite", sites=("1.weight",), message="NaN")
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
        findings=(Finding(first_step=3, name="zero-gradient", sites=("a",), message="dead", evidence={"x": 1.0}),),
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
