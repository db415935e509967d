"""An optimizer whose `step` is compiled is counted and measured as in eager mode, and steps as it would unwatched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.events import event_files, read_events
from gradlab.sinks import MemorySink

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
TAPS = [
    Tap("*", of="weight_grad", stage=["final", "clipped"]),
    Tap("*", of=["weight", "update", "output", "output_grad"]),
]


class Plain(torch.optim.Optimizer):
    """An optimizer of the user's, whose step is one graph: those of torch break it themselves."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.add_(p.grad, alpha=-0.1)


def clips_and_steps(optimizer: Any, model: nn.Module, **options: Any) -> Callable[[], Any]:
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(list(model.parameters()), 0.01)
        optimizer.step()

    return torch.compile(step, **options)


def in_its_place(optimizer: Any, model: nn.Module, **options: Any) -> Callable[[], Any]:
    optimizer.step = torch.compile(optimizer.step, **options)
    return lambda: optimizer.step()


WAYS: dict[str, Callable[..., Callable[[], Any]]] = {
    "a_function": lambda optimizer, model, **options: torch.compile(lambda: optimizer.step(), **options),
    "the_method": lambda optimizer, model, **options: torch.compile(optimizer.step, **options),
    "in_its_place": in_its_place,
    "with_clipping": clips_and_steps,
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, torch.tensor(0.1)),
    "adam": lambda params: torch.optim.Adam(params, torch.tensor(0.1)),
    "plain": Plain,
    "one_graph": Plain,
}


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    """What one test has compiled is not there in the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(
    kind: str, way: str, *, watched: str, backend: str = "eager"
) -> tuple[list[Any], list[torch.Tensor], list[int]]:
    """Five steps of which the first is taken before watching where it is `late`; its frames, weights and step count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = OPTIMIZERS[kind](model.parameters())
    step = WAYS[way](optimizer, model, backend=backend, fullgraph=kind == "one_graph")
    sink, monitor, counts = MemorySink(), None, []
    for number in range(5):
        if number == (1 if watched == "late" else 0) and watched != "not":
            monitor = gradlab.watch(
                model, None if watched == "late" else optimizer, taps=TAPS, sinks=[sink], strict=True, performance=False
            )
        if number == 4 and monitor is not None:
            monitor.close()
        optimizer.zero_grad()
        model(torch.randn(2, 4, generator=torch.Generator().manual_seed(number))).square().sum().backward()
        step()
        counts.append(monitor.step if monitor is not None else 0)
    return list(sink.frames), [p.detach().clone() for p in model.parameters()], counts


def as_numbers(frame: Any) -> dict[str, dict[str, float]]:
    return {metric: dict(series.items()) for metric, series in frame.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("watched", ["early", "late"])
def test_a_compiled_step_is_measured_as_in_eager_mode(
    kind: str, way: str, watched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if watched == "late" and kind == "adam":
        pytest.skip("as with sgd")
    _, bare, _ = train(kind, way, watched="not")
    frames, weights, counts = train(kind, way, watched=watched)
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        eager, _, eager_counts = train(kind, way, watched=watched)
    assert all(torch.equal(p, q) for p, q in zip(weights, bare, strict=True))
    assert counts == eager_counts == ([1, 2, 3, 4, 4] if watched == "early" else [0, 1, 2, 3, 3])
    assert len(frames) == len(eager)
    for one, other in zip(frames, eager, strict=True):
        now, expected = as_numbers(one), as_numbers(other)
        assert now.keys() == expected.keys()
        for metric in expected:
            assert now[metric] == pytest.approx(expected[metric], rel=1e-4, nan_ok=True), (
                metric
            )  # Adam rounds differently, compiled


def test_a_step_that_is_compiled_is_in_the_event_file(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), torch.tensor(0.1))
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with gradlab.watch(model, optimizer, logdir=tmp_path, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(2, 4)).sum().backward()
            step()
    values = [value for file in event_files(tmp_path) for value in read_events(file)]
    assert sorted({value.step for value in values if "weight_grad" in value.tag}) == [0, 1, 2]


def test_two_models_with_compiled_steps_count_their_own() -> None:
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    optimizers = [Plain(one.parameters()) for one in models]

    @torch.compile(backend="eager", fullgraph=True)
    def both() -> None:
        for one in optimizers:
            one.step()

    with gradlab.watch(models[0]) as first, gradlab.watch(models[1], optimizers[1]) as second:
        for _ in range(3):
            for one in models:
                one.zero_grad()
                one(torch.randn(2, 4)).sum().backward()
            both()
        assert (first.step, second.step) == (3, 3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of Dynamo's own
def test_a_compiled_step_with_a_closure_has_the_gradients_of_every_step() -> None:
    """The closure's forward is compiled with the step, and shows no output; its backward runs within."""
    model, twin = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    twin.load_state_dict(model.state_dict())
    optimizer, other = (torch.optim.SGD(one.parameters(), torch.tensor(0.1)) for one in (model, twin))
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    taps = [Tap("*", of="weight_grad", stage=["final", "clipped"]), Tap("*", of="update")]
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        for number in range(4):
            x = torch.randn(2, 4, dtype=torch.float64)

            def closure(net: nn.Module = model, of: Any = optimizer, x: torch.Tensor = x) -> torch.Tensor:
                of.zero_grad()
                loss = net(x).square().sum()
                loss.backward()
                return loss

            optimizer.step(closure)
            before = twin.weight.detach().clone()
            other.step(lambda closure=closure: closure(twin, other))
            latest = monitor.latest()
            assert monitor.step == number + 1
            for metric in ("weight_grad.norm", "weight_grad.norm@clipped"):
                assert latest[metric]["weight"] == pytest.approx(twin.weight.grad.norm().item())
            assert latest["update.norm"]["weight"] == pytest.approx((twin.weight.detach() - before).norm().item())


@pytest.mark.slow
def test_inductor_compiles_the_same_step() -> None:
    _, bare, _ = train("adam", "with_clipping", watched="not", backend="inductor")
    frames, weights, counts = train("adam", "with_clipping", watched="early", backend="inductor")
    assert all(torch.equal(p, q) for p, q in zip(weights, bare, strict=True))
    assert counts[:4] == [1, 2, 3, 4] and len(frames) == 4
