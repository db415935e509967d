"""A watched step reads nothing back: no scalar, no flag, no tensor, but for the one host copy of a logged step,
and the one of a step that the diagnosis looks at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import gradlab
from gradlab import Tap
from gradlab.facts.collection import is_look
from gradlab.stats.derive import NEEDS
from gradlab.stats.parts import PARTS

EVERYTHING = [
    Tap(["*", "input*"], of=["output", "output_grad"], stats=list(NEEDS)),
    Tap("*", of=["weight", "weight_grad", "update"], stats=list(NEEDS)),
    Tap("*", of="weight_grad", stage=["final", "clipped", "micro"]),
]
NAMES = sorted(zoo.ZOO)
SOURCE = str(Path(gradlab.__file__).parent)
TORCH = str(Path(torch.__file__).parent)
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")


def step_of(case: zoo.Case, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step of two micro-batches, with clipping."""
    optimizer.zero_grad()
    for micro in range(2):
        case.loss(model(case.batch(micro))).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def scalar_reads(step: Callable[[], None]) -> int:
    """How many `aten::_local_scalar_dense` a step runs: each would stall a GPU."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    assert any(event.name().startswith("aten::") for event in events)
    return sum(event.name() == "aten::_local_scalar_dense" for event in events)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reading methods of tensors that gradlab has called: `numpy in Transfer.values`."""
    seen: list[str] = []

    def traced(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_filename.startswith(TORCH):
                frame = frame.f_back
            if frame.f_code.co_filename.startswith(SOURCE):
                seen.append(f"{name} in {frame.f_code.co_qualname}")
            return original(self, *args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, traced(name, getattr(Tensor, name)))
    return seen


def copies(calls: list[str]) -> list[str]:
    """The calls without the look at a loss that is on the host already, which waits for nothing."""
    return [call for call in calls if call != "numpy in Facts._is_alarm"]


def slow_part(kind: str) -> Callable[[Tensor, Tensor], None]:
    """A part of gradlab's that reads a scalar, for the tests of these tests."""
    namespace: dict[str, Any] = {}
    exec(compile(f"def part(x, out): out.fill_({kind})", f"{SOURCE}/stats/parts.py", "exec"), namespace)
    return namespace["part"]


@pytest.mark.parametrize("name", NAMES)
def test_no_step_of_the_zoo_reads_a_tensor_but_the_host_copy(name: str, calls: list[str]) -> None:
    case = zoo.ZOO[name]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True):
        for step in range(5):
            calls.clear()
            step_of(case, model, optimizer)
            assert copies(calls) == ["numpy in Transfer.values"] * (1 + is_look(step))


@pytest.mark.parametrize("name", ["Functional", "DropoutAndNorm", "CalledThrice", "InPlace", "DictOutput"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_watched_step_runs_no_scalar_read_of_its_own(name: str, kind: type[torch.optim.Optimizer]) -> None:
    case = zoo.ZOO[name]
    counts = []
    for watched in (False, True):
        model = case.make()
        optimizer = kind(model.parameters(), lr=0.1)
        step_of(case, model, optimizer)  # the optimizer makes its state
        monitor = gradlab.watch(model, optimizer, taps=EVERYTHING, strict=True) if watched else None
        counts.append([scalar_reads(lambda m=model, o=optimizer: step_of(case, m, o)) for _ in range(2)])
        if monitor is not None:
            monitor.close()
    assert counts[0] == counts[1]


def test_a_step_on_which_nothing_is_due_reads_nothing_at_all(calls: list[str]) -> None:
    case = zoo.ZOO["Functional"]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of=["output", "weight_grad"], every=3)], strict=True):
        counts = []
        for _ in range(6):
            calls.clear()
            step_of(case, model, optimizer)
            counts.append(len(copies(calls)))
    assert counts == [due + is_look(step) for step, due in enumerate([1, 0, 0, 1, 0, 0])]


@pytest.mark.parametrize(
    "kind, reading", [("x.sum().item()", "item"), ("float(x.sum())", "__float__"), ("x.sum().cpu().tolist()", "tolist")]
)
def test_a_part_that_reads_would_be_found(
    kind: str, reading: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "sum", slow_part(kind))
    case = zoo.ZOO["Functional"]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="output", stats="mean")], strict=True):
        step_of(case, model, optimizer)
    assert f"{reading} in part" in calls


def test_a_part_that_reads_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "sum", slow_part("x.sum().item()"))
    case = zoo.ZOO["Functional"]
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bare = scalar_reads(lambda: step_of(case, model, optimizer))
    with gradlab.watch(model, optimizer, taps=[Tap("a", of="output", stats="mean")], strict=True):
        watched = scalar_reads(lambda: step_of(case, model, optimizer))
    assert watched == bare + 2  # one a micro-batch
