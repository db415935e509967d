"""Every hook asks for the state of the interpreter before it looks at anything, and no mode of others sees our ops.

The table here lists every place where gradlab puts a hook in, with the function that asks
(`gradlab.hooks.interpreter`).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hooks.example import STATS, Net, batch, seeded, watching_everything
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import gradlab
from gradlab import JacobianSlice, Tap

SOURCE = Path(gradlab.__file__).parent


# --- The list of entry points.

HOOKS = {"Hook", "CallHook", "ModuleHook", "GradHook", "TorchFunctionMode", "TorchDispatchMode"}
"""A class with one of these bases is called from inside somebody else's code."""
OWN_RUN = "called in runs of gradlab's own alone, which are outside of the modes of others"
NO_TENSOR = "touches no tensor: it marks a moment"
ENTRY_POINTS = {
    "attach/watching.py:Session.begin": "attach/watching.py:Session._called()",
    "facts/called_modules.py:_Calls": "facts/called_modules.py:_Calls.__call__()",
    "facts/held_graphs.py:HeldGraphs.attach": "facts/held_graphs.py:HeldGraphs._after_forward()",
    "facts/value_flow.py:FlowMode": "facts/value_flow.py:FlowMode._follow()",
    "jacobians/orthonormal_backward.py:_orthonormalised": OWN_RUN,
    "jacobians/live_graph.py:LiveGraph.open": "hooks/call_hooks.py:OwnThreadHook.__call__()",
    "jacobians/retained_grads.py:RetainGradWatcher": "jacobians/retained_grads.py:RetainGradWatcher.enter()",
    "lightning/phases.py:PhaseActions.attach": NO_TENSOR,
    "monitor/training_step.py:TrainingStep.attach": "monitor/training_step.py:TakeProbe.__call__()",
    "monitor/training_step.py:TrainingStep.measure_once": "monitor/training_step.py:TakeProbe.__call__()",
    "monitor/training_step.py:TakeProbe": "monitor/training_step.py:TakeProbe.__call__()",
    "monitor/lifetime.py:Owner": NO_TENSOR,
    "monitor/lifetime.py:Owner.__init__": NO_TENSOR,
    "perf/flops.py:CallRecorder.__init__": "perf/flops.py:CallRecorder._begin()",
    "perf/loop_hooks.py:LoopHooks.attach": "perf/loop_hooks.py:LoopHooks._forward_begins()",
    "perf/loop_hooks.py:_Hook": "perf/loop_hooks.py:_Hook.__call__()",
    "profiling/ranges.py:ModuleRanges.attach": NO_TENSOR,
    "profiling/ranges.py:_Begin": "profiling/ranges.py:_Begin.__call__()",
    "profiling/ranges.py:_CompiledModuleRange": NO_TENSOR,
    "profiling/ranges.py:_End": "profiling/ranges.py:_End.__call__()",
    "monitor/steps.py:Steps._register_global_hooks": "monitor/training_step.py:TrainingStep.before_update()",
    "monitor/steps.py:Steps.attach": "monitor/training_step.py:TrainingStep.after_update()",
    "sites/ops.py:OpWatcher": OWN_RUN,
    "taps/backward/hooks.py:GradHook._put_on": "taps/backward/hooks.py:GradHook.__call__()",
    "hooks/leaf_hooks.py:LeafHooks.register": "perf/loop_hooks.py:LoopHooks._backward_begins()",
    "taps/forward/hooks.py:ModuleCallHook": "taps/forward/hooks.py:ModuleCallHook.__call__()",
    "taps/forward/hooks.py:InputHook": "taps/forward/hooks.py:InputHook.__call__()",
    "taps/forward/thread_state.py:_OpWatcher": "taps/forward/modules.py:ModuleHooks.op()",
    "taps/forward/hooks.py:RootCallHook": "taps/forward/hooks.py:RootCallHook.__call__()",
    "nonfinite/dispatch.py:ModuleStacks.install": OWN_RUN,
    "nonfinite/dispatch.py:NameInputs": OWN_RUN,
    "nonfinite/dispatch.py:DispatchLog": OWN_RUN,
    "nonfinite/dispatch.py:_Enter": OWN_RUN,
    "nonfinite/dispatch.py:_Leave": OWN_RUN,
    "nonfinite/search.py:searching": OWN_RUN,
    "taps/backward/parameters.py:ParameterWatch.arm": "taps/backward/parameters.py:ParameterWatch.arm()",
    "taps/backward/recorder.py:Recorder.watch_parameters": "taps/backward/recorder.py:Recorder._accumulated()",
    "taps/backward/segments.py:SegmentHook": "taps/backward/hooks.py:GradHook.__call__()",
    "hooks/call_hooks.py:ModuleHook": "perf/flops.py:CallRecorder._begin()",
    "hooks/call_hooks.py:_CountsReferences": NO_TENSOR,
    "nonfinite/guard.py:Guard.attach": "nonfinite/guard.py:Guard.forward_begins()",
    "nonfinite/guard.py:_After": "nonfinite/guard.py:Guard.forward_ended()",
    "nonfinite/guard.py:_Before": "nonfinite/guard.py:Guard.forward_begins()",
    "hooks/call_hooks.py:OwnThreadHook": "hooks/call_hooks.py:OwnThreadHook.__call__()",
    "sites/forward.py:_FullWalk.install": "hooks/call_hooks.py:OwnThreadHook.__call__()",
    "sites/forward.py:_OwnersWalk.install": OWN_RUN,
}
"""`file:where` of each hook and mode -> `file:function()` that asks for the state of the interpreter, or why none does.
A new one that is not listed makes a test fail: its author decides here in which states it may run."""


def entry_points() -> set[str]:
    """Every class of hooks or modes in the package, and every function in which a hook is registered with torch."""
    found = set()
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        for node, owner in _walk(ast.parse(path.read_text(encoding="utf-8")), ()):
            if isinstance(node, ast.ClassDef) and {_name(base) for base in node.bases} & HOOKS:
                found.add(f"{file}:{'.'.join(owner)}")
            if isinstance(node, ast.Call):
                called = _name(node.func)
                if re.fullmatch(r"register_\w*hook", called):
                    found.add(f"{file}:{'.'.join(owner)}")
    return found


def _walk(node: ast.AST, owner: tuple[str, ...]) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    for child in ast.iter_child_nodes(node):
        inner = (*owner, child.name) if isinstance(child, ast.ClassDef | ast.FunctionDef) else owner
        yield child, inner
        yield from _walk(child, inner)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_every_entry_point_is_listed_with_its_guard() -> None:
    assert entry_points() == set(ENTRY_POINTS)


@pytest.mark.parametrize("where", sorted({w for w in ENTRY_POINTS.values() if ":" in w and w.endswith(")")}))
def test_the_guard_of_an_entry_point_asks_for_the_state_of_the_interpreter(where: str) -> None:
    file, _, function = where.removesuffix("()").partition(":")
    value: Any = import_module("gradlab." + file.removesuffix(".py").replace("/", "."))
    for part in function.split("."):
        value = getattr(value, part)
    assert re.search(
        r"must_not_record\(|own_ops\(|outside_modes\(|is_compiling\(|in_functorch\(", inspect.getsource(value)
    )


# --- Modes of others.


class FunctionsSeen(TorchFunctionMode):
    """Counts the torch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[getattr(func, "__name__", str(func))] += 1
        return func(*args, **(kwargs or {}))


class OpsSeen(TorchDispatchMode):
    """Counts the ops that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def counted(mode: Any, tmp_path: Path, *, watched: bool, steps: int = 5) -> Any:
    """What a mode around a training loop has counted."""
    model = seeded(Net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for step in range(steps):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            optimizer.step()

    if not watched:
        with mode:
            train()
    else:
        with watching_everything(model, optimizer, tmp_path), mode:
            train()
    return mode.get_total_flops() if isinstance(mode, FlopCounterMode) else mode.seen


@pytest.mark.parametrize("mode", [FunctionsSeen, OpsSeen, partial(FlopCounterMode, display=False)])
def test_a_mode_around_the_loop_sees_the_ops_of_the_bare_loop(mode: Any, tmp_path: Path) -> None:
    assert counted(mode(), tmp_path, watched=True) == counted(mode(), tmp_path, watched=False)


def test_what_is_logged_under_modes_is_what_is_logged_without(tmp_path: Path) -> None:
    def frames(mode: Any) -> dict[str, Any]:
        model = seeded(Net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        taps = [Tap("*", of=["output", "output_grad"], stats=STATS), Tap("*", of=["weight_grad", "update"])]
        with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor, mode:
            for step in range(3):
                optimizer.zero_grad()
                model(batch(step)).square().mean().backward()
                optimizer.step()
            return monitor.latest()

    bare = frames(torch.enable_grad())
    for mode in (FunctionsSeen(), OpsSeen(), FlopCounterMode(display=False), torch.device("cpu")):
        assert frames(mode) == bare


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_of_the_script_is_not_that_of_our_slots(dtype: torch.dtype) -> None:
    model = seeded(partial(Net, 70_000))  # too long for one plain norm
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = torch.get_default_dtype()
    taps = [Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad")]
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        torch.set_default_dtype(dtype)
        try:
            for _ in range(3):
                optimizer.zero_grad()
                model(batch()).square().mean().backward()
                optimizer.step()
        finally:
            torch.set_default_dtype(before)
        logged = monitor.latest()
    weight = model.wide.weight.grad
    assert weight is not None
    want = model.wide(model.b(model.a(batch()))).double().norm().item()
    assert logged["output.norm"]["wide"] == pytest.approx(want, rel=1e-5)
    assert logged["weight_grad.norm"]["wide.weight"] == pytest.approx(weight.double().norm().item(), rel=1e-5)


def test_a_default_device_is_that_of_the_model_and_not_of_our_slots() -> None:
    """A model that makes tensors on the default device; gradlab's own are where the parameters are."""

    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert torch.empty(1).device.type == "meta"
            return self.a(x)

    model = seeded(Makes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    taps = [Tap("*", of=["output", "output_grad"], stats=STATS), Tap("*", of="weight_grad")]
    slices = [JacobianSlice(of="output", wrt="a", rows=1, every=1)]
    x, gradient = batch(), torch.ones(2, 3)
    with gradlab.watch(model, optimizer, taps=taps, jacobians=slices, strict=True) as monitor:
        with torch.device("meta"):
            for _ in range(3):
                out = model(x)
                out.backward(gradient)
                optimizer.step()
        assert monitor.latest()["output.norm"]["a"] == pytest.approx(out.norm().item(), rel=1e-6)


def test_an_own_stat_is_computed_in_full_precision_under_autocast() -> None:
    def gram(x: Tensor) -> Tensor:
        return (x.flatten() @ x.flatten()).float()

    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    model = nn.Sequential(Sine(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = batch()
    with gradlab.watch(model, optimizer, taps=[Tap("0", of="output", stats=gram)], strict=True) as monitor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        out.float().sum().backward()
        optimizer.step()
        logged = monitor.latest()["output.gram"]["0"]
    values = torch.sin(x).flatten()
    with torch.autocast("cpu", torch.bfloat16):
        assert gram(values).item() != pytest.approx((values.double() @ values.double()).item(), rel=1e-5)
    assert logged == pytest.approx((values.double() @ values.double()).item(), rel=1e-6)
