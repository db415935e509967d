"""Which forwards and backwards of a step count: very many of them, backwards inside backwards, forwards without
gradients. The reference is plain autograd on the batch as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab import Tap
from gradlab.frame import is_absent

EVERYTHING = [
    Tap("*", of=["output", "output_grad"], stats=["norm", "mean", "std", "max_abs"]),
    Tap("*", of=["weight_grad", "update"]),
]


def net(seed: int = 0) -> nn.Sequential:
    """A small float64 network, the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def batch(size: int, seed: int = 1) -> Tensor:
    """[size, 2] float64."""
    return torch.randn(size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def seen(monitor: gradlab.Monitor, metric: str) -> dict[str, float]:
    """The newest series of a metric, without sites that have no value."""
    series = monitor.latest().get(metric, {})
    return {site: value for site, value in series.items() if not is_absent(np.float32([value]))[0]}


def stats_of(x: Tensor) -> dict[str, float]:
    x = x.detach()
    return {
        "norm": x.norm().item(),
        "mean": x.mean().item(),
        "std": x.std(correction=0).item(),
        "max_abs": x.abs().max().item(),
    }


def whole(model: nn.Sequential, x: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Values and gradients of the layers of a twin that sees everything as one batch, and gradients of its weights."""
    twin = copy.deepcopy(model)
    values = {}
    for name, layer in twin.named_children():
        x = values[name] = layer(x)
    parameters = dict(twin.named_parameters())
    wanted = [*values.values(), *parameters.values()]
    grads = torch.autograd.grad(loss(x), wanted)
    found = {f"output {name}": value for name, value in values.items()}
    found |= {f"output_grad {name}": g for name, g in zip(values, grads, strict=False)}
    return found | {f"weight_grad {n}": g for n, g in zip(parameters, grads[len(values) :], strict=True)}


def agrees(monitor: gradlab.Monitor, expected: dict[str, Tensor], stats: tuple[str, ...] = ("norm",)) -> None:
    """What is logged of some tensors is what they are."""
    for key, tensor in expected.items():
        quantity, site = key.split()
        for stat in stats if quantity != "weight_grad" else ("norm",):
            logged = seen(monitor, f"{quantity}.{stat}")[site]
            assert logged == pytest.approx(stats_of(tensor)[stat], rel=2e-5, abs=1e-7), (key, stat)


def loss_of(out: Tensor) -> Tensor:
    return out.square().sum()


HISTOGRAM = Tap("output", of="output", stats="hist")
ALL_STATS = ("norm", "mean", "std", "max_abs")
MANY = 600


def test_every_forward_of_very_many_counts_where_one_backward_goes_through_all() -> None:
    model, x = net(), batch(MANY)
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for _ in range(2):
            expected = whole(model, x, loss_of)
            optimizer.zero_grad()
            sum(loss_of(model(row[None])) for row in x).backward()
            optimizer.step()
            agrees(monitor, expected, ALL_STATS)
            assert seen(monitor, "output.norm").keys() == {"0", "1", "2", "output"}


def test_passes_that_are_over_are_put_together_and_take_no_memory() -> None:
    model, x = net(), batch(MANY)
    optimizer = sgd(model)
    taps = [*EVERYTHING, Tap("*", of="weight_grad", stage=["final", "micro"])]
    with gradlab.watch(model, optimizer, taps=[*taps, HISTOGRAM], strict=True) as monitor:
        for _ in range(2):
            expected = whole(model, x, loss_of)
            last = whole(model, x[-1:], loss_of)["weight_grad 0.weight"].norm().item()
            twin = copy.deepcopy(model)
            weight = twin[0].weight
            single = [torch.autograd.grad(loss_of(one), weight, retain_graph=True)[0] for one in twin(x)]
            squares = sum(gradient.square().sum().item() for gradient in single)
            optimizer.zero_grad()
            most = 0
            for row in x:
                loss_of(model(row[None])).backward()
                most = max(most, len(monitor._training_step.engine.recorder.passes))
            optimizer.step()
            assert most < 600
            agrees(monitor, expected, ALL_STATS)
            assert seen(monitor, "weight_grad.norm@micro")["0.weight"] == pytest.approx(last, rel=1e-5)
            total = expected["weight_grad 0.weight"].norm().item()
            big, small = total**2 / MANY**2, squares / MANY
            noise = ((small - big) / (1 - 1 / MANY)) / ((MANY * big - small) / (MANY - 1))
            assert seen(monitor, "noise_scale")["0.weight"] == pytest.approx(noise, rel=1e-4)
            assert monitor.latest()["output.hist"].array.sum(1).tolist() == [MANY]


def test_forwards_that_nobody_goes_back_through_are_dropped_however_many_they_are() -> None:
    model, x = net(), batch(4)
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True) as monitor:
        expected = whole(model, x, loss_of)
        for row in batch(MANY, seed=2):
            model(100 * row[None])
        assert len(monitor._training_step.engine.recorder.passes) < 600
        for row in x:
            loss_of(model(row[None])).backward()
        optimizer.step()
        agrees(monitor, expected, ALL_STATS)


@pytest.mark.filterwarnings("ignore:gradlab. 701 backward passes have ended without a step")
def test_gradients_thrown_away_after_very_many_backwards_are_void() -> None:
    model, x = net(), batch(8)
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for row in batch(700, seed=2):
            loss_of(model(row[None])).backward()
        optimizer.zero_grad()
        expected = whole(model, x, loss_of)
        for row in x:
            loss_of(model(row[None])).backward()
        optimizer.step()
        agrees(monitor, expected, ALL_STATS)


def test_an_own_stat_of_very_many_passes_is_that_of_the_last() -> None:
    def total(x: Tensor) -> Tensor:
        return x.sum()

    model, x = net(), batch(600)
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap("output", of="output", stats=[total, "norm"])]) as monitor:
        for row in x:
            out = model(row[None])
            loss_of(out).backward()
        optimizer.step()
        assert seen(monitor, "output.total")["output"] == pytest.approx(out.item(), rel=1e-6)
        assert seen(monitor, "output.norm")["output"] > abs(out.item())


def test_a_policy_gradient_over_thousands_of_actions() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with gradlab.watch(model, optimizer, taps=[Tap("output", of="output_grad")], strict=True) as monitor:
        sum(model(torch.ones(1, 1)) for _ in range(4096)).sum().backward()
        optimizer.step()
        assert monitor.latest()["output_grad.norm"]["output"] == pytest.approx(64.0)


# Forwards without gradients.


class Actor(nn.Module):
    """Its own forward is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.mu = nn.Sequential(nn.Linear(2, 3), nn.Tanh()), nn.Linear(3, 1)
        self.double()

    def log_prob(self, x: Tensor) -> Tensor:
        return self.mu(self.body(x))


def evaluate(actor: Actor, mode: Callable[[], Any]) -> None:
    with mode():
        actor.log_prob(100 * batch(5, seed=3))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("when", ["first", "between", "after", "between parts", "between micro-batches"])
def test_a_part_that_is_called_without_gradients_does_not_count(mode: Callable[[], Any], when: str) -> None:
    actor = Actor()
    optimizer = sgd(actor)
    with gradlab.watch(actor, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for _ in range(2):
            twin = copy.deepcopy(actor)
            layers = nn.Sequential(twin.body, twin.mu)
            x = batch(6)
            expected = whole(layers, x, loss_of)
            optimizer.zero_grad()
            for half in x.split(3):
                if when == "first":
                    evaluate(actor, mode)
                h = actor.body(half)
                if when == "between parts":
                    evaluate(actor, mode)
                out = actor.mu(h)
                if when == "between":
                    evaluate(actor, mode)
                loss_of(out).backward()
                if when == "between micro-batches":
                    evaluate(actor, mode)
            if when == "after":
                evaluate(actor, mode)
            optimizer.step()
            assert seen(monitor, "output.norm").keys() == {"body.0", "body.1", "body", "mu"}
            for name, site in (("0", "body"), ("1", "mu")):
                for quantity in ("output", "output_grad"):
                    for stat in ALL_STATS:
                        wanted = stats_of(expected[f"{quantity} {name}"])[stat]
                        assert seen(monitor, f"{quantity}.{stat}")[site] == pytest.approx(wanted, rel=1e-5)


def test_a_frozen_part_inside_a_call_that_counts_is_seen() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.features(x)
            return self.head(h)

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Frozen()

    model = Root().double()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="output")], strict=True) as monitor:
        x = batch(4)
        model.part(x).sum().backward()
        expected = model.part.features(x).norm().item()
        optimizer.step()
        assert seen(monitor, "output.norm")["part.features"] == pytest.approx(expected)


def test_reentrant_checkpointing_of_a_part_by_itself_counts() -> None:
    actor = Actor()
    optimizer = sgd(actor)
    with gradlab.watch(actor, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for _ in range(2):
            x = batch(6).requires_grad_()
            expected = whole(nn.Sequential(*copy.deepcopy(actor).body, copy.deepcopy(actor.mu)), x, loss_of)
            optimizer.zero_grad()
            loss_of(actor.mu(checkpoint(actor.body, x, use_reentrant=True))).backward()
            optimizer.step()
            for site in ("body.0", "body"):
                key = {"body.0": "0", "body": "1"}[site]
                for quantity in ("output", "output_grad"):
                    wanted = expected[f"{quantity} {key}"].norm().item()
                    assert seen(monitor, f"{quantity}.norm")[site] == pytest.approx(wanted, rel=1e-5), (quantity, site)


# Backwards inside backwards.


class GradCache(nn.Module):
    """Runs chunks without gradients, and again in a hook of the backward, each with a backward of its own."""

    def __init__(self, inner: nn.Module, *, reentrant: bool = False) -> None:
        super().__init__()
        self.net, self.reentrant = inner, reentrant

    def embed(self, x: Tensor) -> Tensor:
        if self.reentrant:
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=True)
        return self.net(x)

    def forward(self, chunks: list[Tensor]) -> Tensor:
        with torch.no_grad():
            outs = [self.net(x).detach().requires_grad_() for x in chunks]
        loss = contrast(torch.cat(outs))
        loss.backward()
        loss = loss.detach().requires_grad_()

        def again(gradient: Tensor) -> None:
            with torch.enable_grad():
                for x, out in zip(chunks, outs, strict=True):
                    (self.embed(x) * out.grad).sum().mul(gradient).backward()

        loss.register_hook(again)
        return loss


def contrast(out: Tensor) -> Tensor:
    """A loss in which every sample depends on every other."""
    return out.square().sum(0).log().sum()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("what", ["the loss", "the network"])
@pytest.mark.parametrize("taps", [None, EVERYTHING])
def test_chunks_that_a_hook_of_the_backward_runs_count_as_one_batch(
    what: str, reentrant: bool, taps: list[Tap] | None
) -> None:
    model = GradCache(net(), reentrant=reentrant)
    watched = model if what == "the loss" else model.net
    prefix = "net." if what == "the loss" else ""
    optimizer = sgd(model)
    with gradlab.watch(watched, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(3):
            x = batch(12)
            expected = whole(model.net, x, contrast)
            optimizer.zero_grad()
            (2 * model(list(x.split(4)))).backward()
            optimizer.step()
            for key, tensor in expected.items():
                quantity, site = key.split()
                site = "output" if not prefix and site == "2" else prefix + site
                if taps is None and quantity != "weight_grad":
                    continue
                wanted = tensor.norm().item() * (1 if quantity == "output" else 2)
                assert seen(monitor, f"{quantity}.norm")[site] == pytest.approx(wanted, rel=1e-5), (key, site)
            assert not any("#" in site for site in seen(monitor, "output.norm"))


class Rerun(torch.autograd.Function):
    """Keeps no activations of a module: its backward runs the module again, and a backward through that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = ctx.module(x)
        torch.autograd.backward(out, gradient)
        return x.grad, None


class Offloaded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.net = nn.Linear(2, 2).double(), net()

    def forward(self, x: Tensor) -> Tensor:
        return Rerun.apply(self.before(x), self.net)


@pytest.mark.parametrize("what", ["the whole", "the network"])
def test_a_module_that_the_backward_of_a_function_runs_again_counts_once(what: str) -> None:
    model = Offloaded()
    watched, prefix = (model, "net.") if what == "the whole" else (model.net, "")
    optimizer = sgd(model)
    with gradlab.watch(watched, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for _ in range(2):
            x = batch(5)
            expected = whole(model.net, model.before(x).detach(), loss_of)
            optimizer.zero_grad()
            loss_of(model(x)).backward()
            optimizer.step()
            for key, tensor in expected.items():
                quantity, site = key.split()
                site = "output" if not prefix and site == "2" else prefix + site
                assert seen(monitor, f"{quantity}.norm")[site] == pytest.approx(tensor.norm().item(), rel=1e-5), key
            assert not any("#" in site for site in seen(monitor, "output.norm"))


def test_a_backward_inside_a_forward_does_not_end_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            loss_of(h).backward(retain_graph=True)
            return self.b(h)

    model = Net().double()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            out = model(batch(5))
            loss_of(out).backward()
            true = {n: p.grad.norm().item() for n, p in model.named_parameters()}
            optimizer.step()
            assert seen(monitor, "weight_grad.norm") == pytest.approx(true, rel=1e-5)
            assert seen(monitor, "output.norm").keys() == {"a", "b", "output", "/square", "/sum"}
            assert seen(monitor, "output_grad.norm")["b"] == pytest.approx(2 * out.norm().item(), rel=1e-5)


def test_a_backward_in_a_hook_of_another_watched_models_backward() -> None:
    first, second = net(1), net(2)
    optimizers = sgd(first), sgd(second)
    with (
        gradlab.watch(first, optimizers[0], taps=EVERYTHING, strict=True) as one,
        gradlab.watch(second, optimizers[1], taps=EVERYTHING, strict=True) as other,
    ):
        for _ in range(2):
            x = batch(5)
            expected = whole(first, x, loss_of), whole(second, x, loss_of)

            def train_the_other(_: Tensor, x: Tensor = x) -> None:
                with torch.enable_grad():
                    loss_of(second(x)).backward()

            for optimizer in optimizers:
                optimizer.zero_grad()
            out = first(x)
            out.register_hook(train_the_other)
            loss_of(out).backward()
            for optimizer in optimizers:
                optimizer.step()
            for monitor, tensors in zip((one, other), expected, strict=True):
                agrees(monitor, {key: tensor for key, tensor in tensors.items() if not key.endswith(" 2")})


def test_one_parameter_whose_chunks_come_one_by_one_loses_none() -> None:
    inner = nn.Linear(2, 1, bias=False).double()
    model = GradCache(inner)
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            model(list(batch(12).split(4))).backward()
            true = inner.weight.grad.norm().item()
            optimizer.step()
            assert seen(monitor, "weight_grad.norm") == {"net.weight": pytest.approx(true, rel=1e-5)}
        assert not monitor.findings
