"""The loss: signs, ways to the weights and averages that are wrong are named; what looks like one is passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

import gradlab
from gradlab.diagnose.context import (
    Context,
    History,
    LossGraph,
    LossSeries,
    LossTerm,
    OptimizerFacts,
    ParameterFacts,
)
from gradlab.diagnose.rules.loss import double_softmax, loss_sign, no_path, not_averaged

X, Y, R = torch.randn(16, 5), torch.randint(0, 3, (16,)), torch.randn(16, 3)
HOT = F.one_hot(Y, 3).float()
Loss = Callable[[nn.Module, int], Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[:, None].expand(-1, 3, -1))[0][:, -1])


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x[:, None]).relu().mean(2))


NETS = {"mlp": mlp, "gru": Gru, "conv": Conv}


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **({"lr": 0.05} | options))


def train(loss: Loss, model: nn.Module | None = None, make=sgd, *, steps: int = 7, backwards: int = 1, after=None):
    """The findings of a training whose step has so many backwards."""
    torch.manual_seed(0)
    model = model or mlp()
    optimizer = make(model.parameters())
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            for _ in range(backwards):
                loss(model, step).backward()
            if after is not None:
                after(model)
            optimizer.step()
    return {one.code: one for one in monitor.findings if one.severity != "info"}


def likelihood(m: nn.Module) -> Tensor:
    return m(X).log_softmax(1)


WRONG_SIGNS: dict[str, Loss] = {
    "minus a cross entropy": lambda m, _: -F.cross_entropy(m(X), Y),
    "a factor": lambda m, _: F.cross_entropy(m(X), Y) * -0.5,
    "one minus": lambda m, _: 1 - F.mse_loss(m(X), R),
    "a mean by hand": lambda m, _: (-F.cross_entropy(m(X), Y, reduction="none")).mean(),
    "a weighted mean": lambda m, _: -(X[:, 0].abs() * F.cross_entropy(m(X), Y, reduction="none")).mean(),
    "soft labels": lambda m, _: -F.cross_entropy(m(X), HOT),
    "smoothed labels": lambda m, _: -F.cross_entropy(m(X), Y, label_smoothing=0.1),
    "squares by hand": lambda m, _: -((m(X) - R) ** 2).mean(),
    "with a penalty": lambda m, _: -F.huber_loss(m(X), R) + 1e-4 * sum(p.square().sum() for p in m.parameters()),
    "a likelihood": lambda m, _: likelihood(m).gather(1, Y[:, None]).mean(),
    "a likelihood of one-hot labels": lambda m, _: (likelihood(m) * HOT).sum(1).mean(),
    "a distribution's": lambda m, _: Categorical(logits=m(X)).log_prob(Y).mean(),
    "a density": lambda m, _: Normal(m(X), 1.0).log_prob(R).mean(),
}
RIGHT_SIGNS: dict[str, Loss] = {
    "a likelihood": lambda m, _: -likelihood(m).gather(1, Y[:, None]).mean(),
    "an entropy": lambda m, _: F.cross_entropy(m(X), Y) - 0.1 * Categorical(logits=m(X)).entropy().mean(),
    "a policy gradient": lambda m, _: -(Categorical(logits=m(X)).log_prob(Y) * R[:, 0]).mean(),
    "one of costs": lambda m, _: (Categorical(logits=m(X)).log_prob(Y) * R[:, 0].abs()).mean(),
    "a similarity": lambda m, _: -F.cosine_similarity(m(X), R).mean(),
    "a density": lambda m, _: -Normal(m(X), 1.0).log_prob(R).mean(),
    "variance": lambda m, _: -m(X).var(0).mean(),
    "an adversary's term": lambda m, _: F.cross_entropy(m(X), Y) - 0.1 * F.cross_entropy(m(X), Y.roll(1)),
    "gaussian_nll": lambda m, _: F.gaussian_nll_loss(m(X), R, m(X).exp()),
}


@pytest.mark.parametrize("name", WRONG_SIGNS)
def test_a_loss_that_makes_the_error_larger(name: str) -> None:
    assert next(iter(train(WRONG_SIGNS[name], steps=3))) == "GL202"


@pytest.mark.parametrize("name", RIGHT_SIGNS)
def test_a_loss_that_only_looks_like_one(name: str) -> None:
    assert "GL202" not in train(RIGHT_SIGNS[name], steps=3)


@pytest.mark.parametrize("net", NETS)
def test_an_optimizer_that_climbs(net: str) -> None:
    found = train(lambda m, _: F.cross_entropy(m(X), Y), NETS[net](), lambda p: sgd(p, maximize=True))
    assert found["GL202"].message.startswith("SGD has maximize=True, and the loss is a cross entropy")
    assert "GL202" not in train(lambda m, _: -F.cross_entropy(m(X), Y), NETS[net](), lambda p: sgd(p, maximize=True))


def test_gradients_that_are_turned_by_hand() -> None:
    def turn(model: nn.Module) -> None:
        for p in model.parameters():
            p.grad.neg_()

    found = train(lambda m, _: F.cross_entropy(m(X), Y), after=turn)
    assert found["GL202"].message.startswith("the updates go along the gradient (cosine 1.00)")


def sums(*terms: LossTerm, root: str = "NllLoss", **fields) -> LossGraph:
    return LossGraph(root=root, terms=terms, num_backwards=9, num_parameters=2, **fields)


MINUS, PLUS = LossTerm(function="NllLoss", factor=-1.0, reduction="mean"), LossTerm(function="NllLoss")


def test_of_an_adversary_there_is_no_more_than_news() -> None:
    other = Context(graphs=[sums(MINUS), sums(PLUS, root="Add")])
    assert [one.severity for one in loss_sign(other)] == ["info"]
    owned = ParameterFacts(
        name="d", module="", module_class="", shape=(2,), requires_grad=True, is_in_model=True, optimizers=(0, 1)
    )
    shared = Context(graphs=[sums(MINUS, reached=frozenset("d"))], parameters=[owned])
    assert [one.severity for one in loss_sign(shared)] == ["info"]
    assert [one.severity for one in loss_sign(Context(graphs=[sums(MINUS)]))] == [None]


def test_a_loss_without_a_bound() -> None:
    steps = np.arange(120)
    optimizer = OptimizerFacts(name="SGD", is_counted=True, num_steps=9, last_step=9, groups=(), parameters=())

    def of(values: np.ndarray) -> list:
        series = LossSeries(root="Mean", steps=steps, values=values)
        graph = sums(LossTerm(function="Dot"), root="Mean")
        return list(loss_sign(Context(graphs=[graph], losses=[series], optimizers=[optimizer])))

    (found,) = of(-0.01 - (steps / 10) ** 3.0)
    assert found.severity == "info"
    assert of(2 - 3 * (1 - np.exp(-steps / 30))) == []  # a density, that rises ever more slowly
    assert of(np.full(120, -1.0)) == []


def test_nothing_is_said_without_terms() -> None:
    assert list(loss_sign(Context(graphs=[sums()]))) == []
    assert list(loss_sign(Context())) == []


NO_PATHS: dict[str, Loss] = {
    "made anew": lambda m, _: torch.tensor(F.cross_entropy(m(X), Y).item(), requires_grad=True),
    "outputs cut off": lambda m, _: F.cross_entropy(m(X).detach().requires_grad_(), Y),
    "loss cut off": lambda m, _: 2 * F.cross_entropy(m(X), Y).detach().requires_grad_(),
    "argmax": lambda m, _: (m(X).argmax(1) != Y).float().mean().requires_grad_(),
    "round": lambda m, _: F.mse_loss(m(X).round(), R),
    "floor division": lambda m, _: F.mse_loss(torch.div(m(X), 0.5, rounding_mode="floor"), R),
}
PATHS: dict[str, Loss] = {
    "straight through": lambda m, _: F.mse_loss(m(X) + (m(X).round() - m(X)).detach(), R),
    "batches without a target": lambda m, i: F.cross_entropy(m(X), Y) if i % 3 else torch.zeros((), requires_grad=True),
    "rounded beside": lambda m, _: F.mse_loss(m(X).round(), R) + F.mse_loss(m(X), R),
}


@pytest.mark.parametrize(
    ("name", "net"), [*((name, "mlp") for name in NO_PATHS), ("round", "gru"), ("round", "conv"), ("argmax", "gru")]
)
def test_a_loss_without_a_path(name: str, net: str) -> None:
    found = train(NO_PATHS[name], NETS[net](), steps=4)
    assert (next(iter(found)), found["GL203"].severity) == ("GL203", "error")


@pytest.mark.parametrize("name", PATHS)
def test_a_path_there_is(name: str) -> None:
    assert "GL203" not in train(PATHS[name])


def test_gradients_handed_on_by_hand() -> None:
    model, optimizer = mlp(), None
    optimizer = sgd(model.parameters())
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for _ in range(7):
            optimizer.zero_grad()
            out = model(X)
            cut = out.detach().requires_grad_()
            F.cross_entropy(cut, Y).backward()
            out.backward(cut.grad)
            optimizer.step()
    assert monitor.findings == []


def test_what_is_cut_is_placed_at_the_layer_before() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    found = train(lambda m, _: F.cross_entropy(m[3](torch.sign(m[:3](X))), Y), model)
    assert found["GL203"].sites[0] == "2"
    assert "4 parameters up to '2' by sign only" in found["GL203"].message


def test_a_gradient_that_arrives_is_no_cut() -> None:
    facts = ParameterFacts(
        name="w", module="", module_class="", shape=(2,), requires_grad=True, is_in_model=True, is_reached=True
    )
    graph = sums(reached=frozenset("w"), cut=frozenset("w"), cut_by=("Round",))
    readings = History()
    readings.add(0, ("w",), {"weight_grad.norm": np.array([0.3])})
    assert len(list(no_path(Context(graphs=[graph], parameters=[facts])))) == 1
    assert list(no_path(Context(graphs=[graph], parameters=[facts], readings=readings))) == []


def entropy(m: nn.Module, _: int) -> Tensor:
    return F.cross_entropy(m(X), Y)


@pytest.mark.parametrize("net", ["mlp", "conv", "gru"])
def test_gradients_that_add_up(net: str) -> None:
    found = train(entropy, NETS[net](), steps=4, backwards=4)
    assert "4 backwards come to one step" in found["GL204"].message
    assert "GL204" not in train(lambda m, i: entropy(m, i) / 4, NETS[net](), steps=4, backwards=4)


def test_averages_that_look_like_sums() -> None:
    def average(model: nn.Module) -> None:
        for p in model.parameters():
            p.grad /= 4

    def clip(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    def of_a_sum(m: nn.Module, _: int) -> Tensor:
        return F.cross_entropy(m(X), Y, reduction="sum")

    assert "GL204" not in train(entropy, steps=4, backwards=4, after=average)
    assert "GL204" not in train(entropy, steps=4, backwards=4, after=clip)
    assert "GL204" not in train(of_a_sum, steps=4, backwards=4, make=lambda p: sgd(p, lr=1e-3))
    assert "GL204" not in train(entropy, steps=4, backwards=4, make=torch.optim.Adam)
    assert "GL204" not in train(entropy, steps=4, backwards=2)  # two halves of one loss


def test_several_losses_of_one_forward() -> None:
    model = mlp()
    optimizer = sgd(model.parameters())
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            out = model(X)
            for shift in range(3):
                F.cross_entropy(out, Y.roll(shift)).backward(retain_graph=True)
            optimizer.step()
    assert "GL204" not in {one.code for one in monitor.findings}


def test_nothing_is_averaged_where_that_is_not_known() -> None:
    optimizer = OptimizerFacts(name="SGD", is_counted=True, num_steps=9, last_step=9, groups=(), parameters=())
    known = Context(graphs=[sums(replace(PLUS, reduction="mean"))], optimizers=[optimizer], accumulation=8)
    assert len(list(not_averaged(known))) == 1
    for absent in ({"accumulation": None}, {"optimizers": [optimizer, optimizer]}, {"graphs": [sums(PLUS)]}):
        assert list(not_averaged(replace(known, **absent))) == []


PAIRS: dict[str, Loss] = {
    "sigmoid": lambda m, _: F.cross_entropy(m(X).sigmoid(), Y),
    "bounds": lambda m, _: F.cross_entropy(m(X).softmax(1).clamp(1e-6, 1), Y),
    "a small number": lambda m, _: F.cross_entropy(m(X).softmax(1) + 1e-6, Y),
    "two sigmoids": lambda m, _: F.binary_cross_entropy(m(X).sigmoid().sigmoid(), HOT),
    "two softmaxes": lambda m, _: F.nll_loss(m(X).softmax(1).softmax(1).log(), Y),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_activation_too_many_is_placed_at_the_layer_before(name: str) -> None:
    found = train(PAIRS[name], steps=3)
    assert found["GL201"].sites == ("2",)


def test_a_softmax_of_attention_is_not_the_place() -> None:
    graph = LossGraph(
        root="NllLoss", loss_activations=(("LogSoftmax", "Softmax"),), before_activation=("head",), num_backwards=1
    )
    assert [one.sites for one in double_softmax(Context(graphs=[graph]))] == [("head",)]
    assert [one.sites for one in double_softmax(Context(graphs=[replace(graph, activation_modules=("soft",))]))] == [
        ("soft",)
    ]


def test_a_closure_that_resets_gradients_adds_nothing_up() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for _ in range(5):
            optimizer.step(closure)
    assert "GL204" not in {one.code for one in monitor.findings}
