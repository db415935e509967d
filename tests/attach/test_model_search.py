"""Which model `gradlab attach` finds: by the search itself, and in one script with a training of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import Script
from torch import nn

from gradlab.attach.model_search import ModelSearch
from gradlab.attach.module_hooks import ModuleAges
from gradlab.events.reader import read_events


class Wrapper(nn.Module):
    """A module around another, with a parameter of its own."""

    def __init__(self, inner: nn.Module, *, scale: bool = False) -> None:
        super().__init__()
        self.inner = inner
        if scale:
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing of its own."""
        return self.inner(x)


def mlp() -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def ids(*modules: nn.Module) -> set[int]:
    """The ids of the modules' parameters."""
    return {id(p) for one in modules for p in one.parameters()}


@pytest.fixture
def ages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleAges]:
    """Ages of modules, for the time of a test."""
    monkeypatch.setattr(nn.Module, "__init__", nn.Module.__init__)
    ages = ModuleAges()
    ages.install()
    return ages


def models(wanted: set[int], called: nn.Module | None, ages: ModuleAges, made: int | None = None) -> list[nn.Module]:
    """The models that are found for an optimizer that was made at `made`, by default just now."""
    return ModelSearch(wanted, called, ages).models_of(wanted, ages.now if made is None else made)


def test_a_wrapper_that_is_younger_than_the_optimizer_is_not_the_model(ages: ModuleAges) -> None:
    net = mlp()
    made = ages.now
    for wrapper in (Wrapper(net), Wrapper(net, scale=True), Wrapper(Wrapper(net))):
        assert models(ids(net), wrapper, ages, made) == [net]
        assert models(ids(net), None, ages, made) == [net]


def test_a_wrapper_that_was_there_before_is_the_model(ages: ModuleAges) -> None:
    whole = Wrapper(mlp())
    assert models(ids(whole), whole.inner, ages) == [whole]
    assert models(ids(whole), None, ages) == [whole]


def test_a_head_that_is_trained_alone_belongs_to_the_model_that_is_called(ages: ModuleAges) -> None:
    net = mlp()
    made = ages.now
    assert models(ids(net[2]), net, ages, made) == [net]
    assert models(ids(net[2]), Wrapper(net), ages, made) == [net]
    assert models(ids(net[2]), net[2], ages, made) == [net[2]]


def test_what_a_backward_has_reached_tells_the_model_where_nothing_was_called(ages: ModuleAges) -> None:
    net = mlp()
    assert models(ids(net[2]), None, ages) == [net[2]]
    net(torch.randn(2, 4)).sum().backward()
    assert models(ids(net[2]), None, ages) == [net]


def test_parameters_of_two_modules_have_two_models_and_those_of_none_have_none(ages: ModuleAges) -> None:
    encoder, decoder = mlp(), nn.Linear(3, 4)
    loose = {id(torch.zeros(3))}
    assert models(ids(encoder, decoder) | loose, encoder, ages) == [encoder, decoder]
    assert models(loose, None, ages) == []


TRAININGS = """
SGD, x = torch.optim.SGD, torch.randn(6, 8)

def loop(call, *optimizers):
    for _ in range(3):
        for one in optimizers: one.zero_grad()
        call(x).square().mean().backward()
        for one in optimizers: one.step()

def made_late():
    class Late(Net): pass
    net, optimizers = Late(), []
    for _ in range(3):
        net.zero_grad()
        net(x).square().mean().backward()
        optimizers = optimizers or [SGD(part.parameters(), 0.1) for part in (net.fc1, net.fc2)]
        print(net.fc1.weight.grad.double().norm().item())
        for one in optimizers: one.step()

def own_call():
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.randn(8, 3))
        def __call__(self, *inputs): return self.forward(*inputs)
        def forward(self, x): return x @ self.w
    net = Own()
    loop(net, SGD(net.parameters(), 0.1))

def closure():
    class Closed(Net): pass
    net = Closed()
    optimizer = SGD(net.parameters(), 0.1)
    def run():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        return loss
    for _ in range(3): optimizer.step(run)

def wrapper():
    class Kept(Net): pass
    class Loss(nn.Module):
        def __init__(self, m): super().__init__(); self.m = m; self.scale = nn.Parameter(torch.ones(()))
        def forward(self, x): return self.m(x) * self.scale
    net = Kept()
    loop(lambda x: Loss(net)(x), SGD(net.parameters(), 0.1))

def two_modules():
    class Encoder(Net): pass
    class Decoder(nn.Linear): pass
    encoder, decoder = Encoder(), Decoder(3, 8)
    loop(lambda x: decoder(encoder(x)), SGD([*encoder.parameters(), *decoder.parameters()], 0.1))

def head():
    class Frozen(Net): pass
    net = Frozen()
    net.fc1.requires_grad_(False)
    loop(net, SGD(net.fc2.parameters(), 0.1))

def loose():
    w = torch.randn(8, 3, requires_grad=True)
    loop(lambda x: x @ w, SGD([w], 0.1))

for training in (made_late, own_call, closure, wrapper, two_modules, head, loose): training()
"""


def read(file: Path) -> dict[str, dict[int, dict[str, float]]]:
    """The numbers of an event file: metric, step, site; without those that are absent."""
    sites: dict[str, list[str]] = {}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for one in read_events(file):
        if one.plugin_name == "gradlab" and "sites" in one.metadata:
            sites.setdefault(one.tag, one.metadata["sites"])
            values = {k: float(v) for k, v in zip(sites[one.tag], one.value, strict=True) if not np.isnan(v)}
            found.setdefault(one.tag.split("/")[1], {}).setdefault(one.step, {}).update(values)
    return found


def test_each_training_has_its_model_and_all_its_steps(script: Script) -> None:
    (script.folder / "taps.yaml").write_text(
        "taps: [{at: '*', of: [weight_grad, output]}, {at: '*', of: weight_grad, stage: clipped}]\n"
    )
    ended = script.write(TRAININGS).attached(flags=("--config", "taps.yaml"))
    assert ended.code == 0, ended.stderr
    lines = (script.folder / "train.py").read_text().splitlines()
    line = lines.index("    loop(lambda x: x @ w, SGD([w], 0.1))") + 1
    assert ended.said == [
        f"gradlab: the model of SGD (made in train.py, line {line}) is not watched: its parameters are in no module."
    ]
    assert "18 steps in" in ended.stderr  # of six trainings, one of which has two models
    found = {file.parent.name.removeprefix("tb").partition("-")[2]: read(file) for file in ended.event_files}
    assert list(found) == ["Own", "Closed", "Kept", "Encoder", "Decoder", "Frozen", ""]
    for name, numbers in found.items():
        assert list(numbers["weight_grad.norm"]) == [0, 1, 2], name
        assert list(numbers["weight_grad.norm@clipped"]) == [0, 1, 2], name

    late = found[""]
    norms = [step["fc1.weight"] for step in late["weight_grad.norm"].values()]
    assert norms == pytest.approx([float(line) for line in ended.stdout.splitlines()], rel=1e-6)
    assert list(late["output.norm"]) == [1, 2]  # the first forward was over when the optimizers were made
    assert all(len(step) == 4 for step in late["weight_grad.norm"].values())
    assert all(set(step) == {"w"} for step in found["Own"]["weight_grad.norm"].values())
    for step in found["Closed"]["weight_grad.norm@clipped"].values():
        assert np.linalg.norm(list(step.values())) == pytest.approx(1e-3, rel=1e-3)
    assert {site for step in found["Kept"]["output.norm"].values() for site in step} == {
        "fc1",
        "/relu",
        "fc2",
        "output",
    }
    assert all(set(step) == {"fc2.weight", "fc2.bias"} for step in found["Frozen"]["weight_grad.norm"].values())
