"""One bad tensor is one bad tensor: what cannot be read is left aside in one line, and all else is measured."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning, TapError
from gradlab.frame import is_absent

EVERYTHING = [Tap("*", of=["output", "output_grad"]), Tap("*", of=["weight", "weight_grad", "update"])]


class Unreadable(Tensor):
    """A subclass whose norm cannot be taken."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "norm" in getattr(func, "__name__", ""):
            raise NotImplementedError("no norms here")
        return super().__torch_function__(func, types, args, kwargs or {})


def seen(monitor: gradlab.Monitor, metric: str) -> dict[str, float]:
    """The newest series of a metric, without sites that have no value."""
    series = monitor.latest().get(metric, {})
    return {site: value for site, value in series.items() if not is_absent(np.float32([value]))[0]}


def trained(
    model: nn.Module, taps: list[Tap], steps: int = 3, **options: Any
) -> tuple[list[str], gradlab.Monitor, nn.Module]:
    """Three steps: what was said, and the monitor."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradlab.watch(model, optimizer, taps=taps, **options) as monitor:
            for seed in range(steps):
                optimizer.zero_grad()
                out = model(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)))
                out.square().sum().backward()
                optimizer.step()
            monitor.latest()
    return [str(w.message) for w in caught if w.category is GradlabWarning], monitor, model


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


UNREADABLE = {
    "uint8": (lambda: torch.zeros(4, dtype=torch.uint8), "It is torch.uint8; only floating-point tensors have norms"),
    "bool": (lambda: torch.ones(4, dtype=torch.bool), "It is torch.bool"),
    "quantized": (quantized, "It is torch.qint8"),
    "meta": (lambda: torch.ones(3, device="meta"), "It is on the meta device and has no values"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "It is a nested tensor"),
}
READABLE = {
    "float8": (lambda: torch.full((4,), 2.0).to(torch.float8_e4m3fn), 4.0),
    "float16 pairs": (lambda: torch.full((4,), 2.0).to(torch.complex32), 4.0),
    "sparse": (lambda: torch.eye(4).mul(2.0).to_sparse_csr(), 4.0),
    "empty": (lambda: torch.zeros(0, 4), 0.0),
}


def with_odd(make: Callable[[], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    model.odd = nn.Parameter(make(), requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:.*(quantiz|prototype|beta state|experimental).*")
@pytest.mark.parametrize("stats", ["norm", ["norm", "mean"]])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_parameter_that_cannot_be_read_is_left_aside_alone(kind: str, stats: Any) -> None:
    make, says = UNREADABLE[kind]
    said, monitor, _ = trained(
        with_odd(make),
        [Tap("*", of=["output", "output_grad"]), Tap("*", of=["weight", "weight_grad", "update"], stats=stats)],
    )
    assert len(said) == 1 and says in said[0] and "odd" in said[0], said
    for metric in ("weight.norm", "weight_grad.norm", "update.norm"):
        assert seen(monitor, metric).keys() == {"weight", "bias"}, metric
    assert seen(monitor, "output_grad.norm").keys() == {"output"}


@pytest.mark.filterwarnings("ignore:.*(quantiz|prototype|beta state|experimental|CSR).*", "ignore:.*ComplexHalf.*")
@pytest.mark.parametrize("kind", READABLE)
def test_a_parameter_of_a_rare_kind_is_measured(kind: str) -> None:
    make, norm = READABLE[kind]
    said, monitor, _ = trained(with_odd(make), EVERYTHING)
    assert not said
    assert seen(monitor, "weight.norm")["odd"] == pytest.approx(norm)
    assert seen(monitor, "update.norm")["odd"] == 0.0
    assert seen(monitor, "weight_grad.norm").keys() == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:.*(quantiz|prototype|beta state|experimental|CSR).*", "ignore:.*ComplexHalf.*")
@pytest.mark.parametrize("kind", [*UNREADABLE, *READABLE])
def test_where_gradients_alone_are_watched_nobody_hears_of_it(kind: str) -> None:
    said, monitor, _ = trained(with_odd((UNREADABLE | READABLE)[kind][0]), [Tap("*", of="weight_grad")], strict=True)
    assert not said
    assert seen(monitor, "weight_grad.norm").keys() == {"weight", "bias"}


def test_many_parameters_that_cannot_be_read_are_one_line() -> None:
    model = with_odd(lambda: torch.zeros(4, dtype=torch.uint8))
    for number in range(9):
        model.register_parameter(f"q{number}", nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    said, _, _ = trained(model, EVERYTHING)
    assert [line.partition(". It")[0] for line in said] == [
        "gradlab: a parameter is not measured: odd",
        "gradlab: 9 parameters are not measured: q0, q1, q2, ... (6 more)",
    ]


@pytest.mark.parametrize("stage", ["final", "clipped", "micro"])
def test_a_gradient_that_cannot_be_read_is_left_aside_alone(stage: str) -> None:
    def total(x: Tensor) -> Tensor:
        if x.shape == (3,):
            raise ValueError("not of three")
        return x.sum()

    torch.manual_seed(0)
    said, monitor, model = trained(nn.Linear(4, 3), [Tap("*", of="weight_grad", stats=[total, "norm"], stage=stage)])
    assert said == ["gradlab: total of 'bias' was switched off: ValueError: not of three"]
    suffix = "" if stage == "final" else f"@{stage}"
    assert seen(monitor, f"weight_grad.total{suffix}") == {"weight": pytest.approx(model.weight.grad.sum().item())}
    assert seen(monitor, f"weight_grad.norm{suffix}").keys() == {"weight", "bias"}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


@pytest.mark.parametrize("quantity", ["output", "output_grad"])
def test_a_stat_that_raises_for_one_tensor_is_switched_off_there_alone(quantity: str) -> None:
    def total(x: Tensor) -> Tensor:
        if x.shape[-1] == 3:
            raise ValueError("not of three")
        return x.sum()

    taps = [Tap(["a", "b"], of=["output", "output_grad"]), Tap(["a", "b"], of=quantity, stats=[total, "mean", "norm"])]
    said, monitor, _ = trained(Two(), taps)
    assert said == ["gradlab: total of 'a' was switched off: ValueError: not of three"]
    assert seen(monitor, f"{quantity}.total").keys() == {"b"}
    for metric in (f"{quantity}.mean", "output.norm", "output_grad.norm"):
        assert seen(monitor, metric).keys() == {"a", "b"}
    with pytest.raises(TapError, match="total of 'a' failed: ValueError: not of three"):
        trained(Two(), taps, strict=True)


def test_optimizers_in_the_backward_leave_one_bad_parameter_aside() -> None:
    def total(x: Tensor) -> Tensor:
        if x.shape == (3,):
            raise ValueError("not of three")
        return x.sum()

    model = Two()
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    taps = [Tap("*", of="weight_grad", stats=[total, "norm"])]
    with (
        pytest.warns(GradlabWarning, match=r"total of 'a\.bias' was switched off"),
        gradlab.watch(model, list(optimizers.values()), taps=taps) as monitor,
    ):
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()
        assert seen(monitor, "weight_grad.total").keys() == {"a.weight", "b.weight", "b.bias"}
        assert seen(monitor, "weight_grad.norm").keys() == {"a.weight", "a.bias", "b.weight", "b.bias"}


@pytest.mark.parametrize("broken", ["with_derived", "look"])
def test_what_is_made_of_a_frame_may_fail_and_the_frame_is_there(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("bad")

    if broken == "look":
        monkeypatch.setattr("gradlab.diagnose.Diagnosis.look_at_frame", fail)
    else:
        monkeypatch.setattr("gradlab.monitor.delivery.with_derived", fail)
    said, monitor, _ = trained(Two(), EVERYTHING)
    what = "the diagnosis was" if broken == "look" else "update_ratio and gain were"
    assert said == [f"gradlab: {what} switched off at step 0: ZeroDivisionError: bad"]
    assert len(monitor.history("weight.norm", "a.weight")[0]) == 3


def test_a_frame_that_cannot_be_made_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradlab.taps.plan import Plan

    make, calls = Plan.series, iter(range(9))

    def series(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise ZeroDivisionError("bad")
        return make(*arguments)

    monkeypatch.setattr(Plan, "series", series)
    said, monitor, _ = trained(Two(), EVERYTHING)
    assert said == ["gradlab: the numbers of step 1 are missing: ZeroDivisionError: bad"]
    assert monitor.history("weight.norm", "a.weight")[0].tolist() == [0, 2]


# Names of stats.


def norm(x: Tensor) -> Tensor:
    return x.sum()


def total(x: Tensor) -> Tensor:
    return x.sum()


class Callable_:
    def __call__(self, x: Tensor) -> Tensor:
        return x.sum()


def other_total() -> Callable[[Tensor], Tensor]:
    def total(x: Tensor) -> Tensor:
        return 2 * x.sum()

    return total


NAMES = {
    "reserved": ([norm], "a stat of your own cannot be called 'norm', which is a name of gradlab's; call it my_norm."),
    "a part": ([max], "cannot be called 'max'"),
    "two lambdas": ([lambda x: x.sum(), lambda x: x.amax()], "the stat '<lambda>' is the name of two functions"),
    "two functions": ([total, other_total()], "the stat 'total' is the name of two functions"),
    "twice": ([total, "mean", total], "the stat 'total' is given twice"),
    "a word twice": (["mean", "mean"], "the stat 'mean' is given twice"),
    "partial": ([functools.partial(torch.sum)], "has no __name__ to be logged under"),
    "an object": ([Callable_()], "has no __name__ to be logged under"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_stat_has_a_name_of_its_own(name: str) -> None:
    stats, says = NAMES[name]
    with pytest.raises(TapError) as raised:
        Tap("x", of="output", stats=stats)
    assert says in str(raised.value) and str(raised.value).startswith("Tap('x'): ")


def test_two_taps_have_one_function_for_a_name() -> None:
    model = Two()
    taps = [Tap("a", of="output", stats=total), Tap("b", of="output", stats=total)]
    gradlab.watch(model, taps=taps).close()
    with pytest.raises(TapError, match=r"Tap\('b'\): the stat 'total' is another function"):
        gradlab.watch(model, taps=[taps[0], Tap("b", of="output", stats=other_total())])


def test_a_callable_with_a_name_is_a_stat() -> None:
    named = functools.partial(torch.sum)
    named.__name__ = "all_of_it"  # type: ignore[attr-defined]
    said, monitor, _ = trained(Two(), [Tap("b", of="output", stats=[named, lambda x: x.amax()])])
    assert not said
    assert {"output.all_of_it", "output.<lambda>"} <= monitor.latest().keys()


# What modules return.


class Custom:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class Returns(nn.Module):
    """A layer inside that returns something made of its output."""

    def __init__(self, wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc = _Wrapped(wrap)
        self.unwrap = unwrap

    def forward(self, x: Tensor) -> Tensor:
        return self.unwrap(self.enc(x))


class _Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


def generated(x: Tensor) -> Iterator[Tensor]:
    yield x


class Listed(list):
    pass


NOT_SEEN = {
    "Normal": (lambda h: torch.distributions.Normal(h, 1.0), lambda d: d.rsample()),
    "Custom": (Custom, lambda c: c.value),
    "generator": (generated, next),
}
SEEN = {
    "a packed sequence": (
        lambda h: nn.utils.rnn.pack_sequence(list(h.split(1))),
        lambda p: p.data,
        "enc[0]",
    ),
    "a list of its own": (lambda h: Listed([h]), lambda v: v[0], "enc[0]"),
}


@pytest.mark.parametrize("kind", NOT_SEEN)
def test_what_is_returned_without_a_tensor_to_see_is_said(kind: str) -> None:
    said, _, _ = trained(Returns(*NOT_SEEN[kind]), [Tap("enc", of="output_grad")])
    assert said == [
        f"gradlab: a tap saw nothing in its first step: 'enc' matches enc, which was called and returned a {kind}, in "
        f"which no tensor is seen. Tensors are seen in tuples, lists, mappings and dataclasses; gradlab.tap(name, "
        f"tensor) names any other in the forward."
    ]


@pytest.mark.parametrize("kind", SEEN)
def test_what_is_returned_with_a_tensor_to_see_is_seen(kind: str) -> None:
    wrap, unwrap, site = SEEN[kind]
    said, monitor, _ = trained(Returns(wrap, unwrap), [Tap("enc*", of="output_grad")])
    assert not said
    assert site in seen(monitor, "output_grad.norm")


def test_a_module_that_returns_none_is_said_to() -> None:
    kept: list[Tensor] = []
    model = Returns(kept.append, lambda _: kept.pop())
    said, _, _ = trained(model, [Tap("enc", of="output")])
    assert said == [
        "gradlab: a tap saw nothing in its first step: 'enc' matches enc, which was called and returned nothing (None)."
    ]


# Forward-mode AD.


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in make_dual
@pytest.mark.parametrize("stats", ["norm", ["norm", "mean", "std"]])
def test_forward_mode_ad_switches_nothing_off(stats: Any) -> None:
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(
        model, optimizer, taps=[Tap(["*", "input"], of=["output", "output_grad"], stats=stats)], strict=True
    ) as monitor:
        for _ in range(4):
            x = torch.randn(5, 4)
            with forward_ad.dual_level():
                tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
            tangent.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            assert seen(monitor, "output.norm")["input"] == pytest.approx(x.norm().item(), rel=1e-5)
            assert seen(monitor, "output.norm").keys() >= {"input", "a", "b"} - {"b"}
