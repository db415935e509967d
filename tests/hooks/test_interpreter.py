"""Whatever state the interpreter is in around a hook, training is what it is unwatched, and so is a graph of a model.

The state that a hook runs in is decided in `gradlab.hooks.interpreter`, for every entry point that the table here
lists.
"""

from __future__ import annotations

import ast
import inspect
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import gradlab
from gradlab import JacobianSlice, Tap

SOURCE = Path(gradlab.__file__).parent
STATS = ["norm", "mean", "std", "max_abs", "zeros", "hist", "cosine"]


class Net(nn.Module):
    """Leaf modules, a container, functional ops."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.wide = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.wide(self.b(self.a(x)))) + 1


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def batch(seed: int = 0, size: int = 2) -> Tensor:
    return torch.randn(size, 4, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))


@contextmanager
def watching_everything(model: nn.Module, optimizer: Any, folder: Path | None = None) -> Iterator[gradlab.Monitor]:
    """All that gradlab puts anywhere: taps, a Jacobian of either kind, the always-on clock, the guard against NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gradlab: no profile was recorded")
        monitor = gradlab.watch(
            model,
            optimizer,
            taps=[
                Tap(["*", "*:in*"], of=["output", "output_grad"], stats=STATS),
                Tap("*", of=["weight", "weight_grad", "update"], stats=["norm", "std"]),
                Tap("*", of="weight_grad", stage=["clipped", "micro"]),
            ],
            jacobians=[
                JacobianSlice(of="b", wrt="a", rows=2, every=1),
                JacobianSlice(of="b", wrt="a", rows=2, every=1, mode="live"),
            ],
            nonfinite=gradlab.NonFinite(skip=True),
            performance=True,
            logdir=folder,
            strict=True,
        )
        with monitor:
            yield monitor


# --- The list of entry points.

HOOKS = {"Hook", "CallHook", "ModuleHook", "GradHook", "TorchFunctionMode", "TorchDispatchMode"}
"""A class with one of these bases is called from inside somebody else's code."""
OWN_RUN = "called in runs of gradlab's own alone, which are outside of the modes of others"
NO_TENSOR = "touches no tensor: it marks a moment"
ENTRY_POINTS = {
    "attach/watching.py:Session.begin": "attach/watching.py:Session._called()",
    "jacobians/orthonormal_backward.py:_orthonormalised": OWN_RUN,
    "jacobians/live_graph.py:LiveGraph.open": "hooks/call_hooks.py:OwnThreadHook.__call__()",
    "jacobians/retained_grads.py:RetainGradWatcher": "jacobians/retained_grads.py:RetainGradWatcher.enter()",
    "lightning/phases.py:PhaseActions.attach": NO_TENSOR,
    "monitor/training_step.py:TrainingStep.attach": "monitor/training_step.py:TakeProbe.__call__()",
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
    "monitor/steps.py:Steps._hear_all": "monitor/training_step.py:TrainingStep.before_update()",
    "monitor/steps.py:Steps._hook": "monitor/training_step.py:TrainingStep.after_update()",
    "sites/ops.py:OpWatcher": OWN_RUN,
    "taps/backward/hooks.py:GradHook._put_on": "taps/backward/hooks.py:GradHook.__call__()",
    "hooks/leaf_hooks.py:LeafHooks.register": "perf/loop_hooks.py:LoopHooks._backward_begins()",
    "taps/forward/modules.py:_Block": "taps/forward/modules.py:_Block.__call__()",
    "taps/forward/modules.py:_Inputs": "taps/forward/modules.py:_Inputs.__call__()",
    "taps/forward/modules.py:_Leaf": "taps/forward/modules.py:_Leaf.__call__()",
    "taps/forward/modules.py:_OpWatcher": "taps/forward/modules.py:ModuleHooks.op()",
    "taps/forward/modules.py:_Root": "taps/forward/modules.py:_Root.__call__()",
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


# --- Selective checkpointing, whose dispatch mode hands results of the forward to the recomputation.


def saves(*ops: Any) -> Any:
    return partial(create_selective_checkpoint_contexts, list(ops))


class Selective(nn.Module):
    """A body that saves the results of some ops and computes the others again."""

    def __init__(self, *ops: Any) -> None:
        super().__init__()
        self.a, self.head, self.context = nn.Linear(4, 4), nn.Linear(4, 1), saves(*ops)

    def body(self, x: Tensor) -> Tensor:
        h = torch.sin(self.a(x))
        return h * torch.exp(h.mean()) / h.norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False, context_fn=self.context))


def own_sum(x: Tensor) -> Tensor:
    return x.mean() + torch.linalg.vector_norm(x) + x.sum()


ATEN = torch.ops.aten
SAVED = [
    (ATEN.addmm.default,),
    (ATEN.mean.default,),
    (ATEN.linalg_vector_norm.default, ATEN.sum.default, ATEN.sum.dim_IntList),
    (ATEN.detach.default, ATEN.clone.default, ATEN.empty_like.default, ATEN.sub.Tensor, ATEN.stack.default),
]


@pytest.mark.parametrize("saved", SAVED, ids=lambda ops: str(ops[0]))
@pytest.mark.parametrize("loose", [False, True], ids=["in the model", "around the model"])
def test_selective_checkpointing_trains_as_unwatched(saved: tuple[Any, ...], loose: bool, tmp_path: Path) -> None:
    def train(watched: bool) -> dict[str, Tensor]:
        model = seeded(partial(Selective, *saved))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        stats = [*STATS, own_sum]
        taps = [Tap("*", of=["output", "output_grad"], stats=stats), Tap("*", of=["weight_grad", "update"])]
        guard = gradlab.NonFinite()
        monitor = (
            gradlab.watch(model, optimizer, taps=taps, logdir=tmp_path, nonfinite=guard, strict=True)
            if watched
            else None
        )
        for step in range(5):
            optimizer.zero_grad()
            x = batch(step)
            out = checkpoint(model, x, use_reentrant=False, context_fn=saves(*saved)) if loose else model(x)
            out.sum().backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
        return model.state_dict()

    bare, watched = train(False), train(True)
    assert all(torch.equal(bare[name], watched[name]) for name in bare)


def test_numbers_under_selective_checkpointing_are_those_of_the_plain_model() -> None:
    def frames(context: bool) -> Any:
        model = seeded(partial(Selective, ATEN.mean.default))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        taps = [Tap("*", of=["output", "output_grad"], stats=["norm", "std"]), Tap("*", of="weight_grad")]
        if not context:
            model.forward = lambda x: model.head(model.body(x))  # type: ignore[method-assign]
        with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
            for step in range(3):
                optimizer.zero_grad()
                model(batch(step)).sum().backward()
                optimizer.step()
            return monitor.latest()

    with_it, without = frames(True), frames(False)
    assert with_it.keys() == without.keys()
    for metric in with_it:
        assert dict(with_it[metric]) == pytest.approx(dict(without[metric]), rel=1e-5), metric


def test_a_live_jacobian_under_selective_checkpointing_is_switched_off_with_one_sentence() -> None:
    model = seeded(partial(Selective, ATEN.addmm.default))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    live = JacobianSlice(of="output", wrt="input", rows=1, every=1, mode="live")
    with gradlab.watch(model, optimizer, jacobians=[live]), pytest.warns(gradlab.errors.GradlabWarning) as caught:
        for step in range(2):
            optimizer.zero_grad()
            model(batch(step)).sum().backward()
            optimizer.step()
    assert [str(one.message) for one in caught] == [
        "gradlab: the Jacobian of 'output' by 'input' was switched off: mode='live' cannot be had here: a part of the "
        "forward is under selective activation checkpointing, whose graph can be gone through once only; use "
        "mode='replay'."
    ]


@pytest.mark.parametrize("wrt", ["body:in", "input", "body.0"])
def test_a_live_jacobian_lets_a_checkpoint_build_the_same_graph_again(wrt: str) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False)

    def train(slices: list[JacobianSlice]) -> tuple[nn.Module, Tensor, list[Any]]:
        model = seeded(Checkpointed).double()
        x = batch(size=1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sink = gradlab.sinks.MemorySink()
        with gradlab.watch(model, optimizer, jacobians=slices, sinks=[sink], strict=True):
            model(x).sum().backward()
            optimizer.step()
        return model, x, [block for _, block in sink.blocks]

    live = JacobianSlice(of="output", wrt=wrt, rows=[0, 1, 2, 3], every=1, mode="live")
    model, x, blocks = train([live])
    bare, _, _ = train([])
    assert torch.equal(model.body[0].weight.grad, bare.body[0].weight.grad)  # type: ignore[union-attr, index, arg-type]
    first, act = model.body  # type: ignore[misc]
    function, at = (act, first(x)) if wrt == "body.0" else (model.body, x)
    want = torch.func.jacrev(function)(at.detach()).reshape(4, 4)
    assert [torch.from_numpy(block.values.copy()).double().reshape(4, 4).shape for block in blocks] == [want.shape]
    torch.testing.assert_close(torch.from_numpy(blocks[0].values.copy()).double().reshape(4, 4), want)


# --- Graphs made of a watched model.


def _scripted(model: nn.Module) -> str:
    return str(torch.jit.script(model).inlined_graph)


def _traced(model: nn.Module) -> str:
    return str(torch.jit.trace(model, batch()).inlined_graph)


def _of_gradients(model: nn.Module) -> str:
    return make_fx(lambda x: torch.autograd.grad(model(x).sum(), list(model.parameters())))(batch()).code


def _compiled(model: nn.Module, backend: str) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True)(batch())


ARTEFACTS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.jit.script": _scripted,
    "torch.jit.trace": _traced,
    "torch.jit.trace of a part": lambda model: _traced(model.a),
    "make_fx": lambda model: make_fx(model)(batch()).code,
    "make_fx of gradients": _of_gradients,
    "torch.export": lambda model: str(torch.export.export(model, (batch(),)).graph),
    "torch.export, strict": lambda model: str(torch.export.export(model, (batch(),), strict=True).graph),
    "torch.fx": lambda model: torch.fx.symbolic_trace(model).code,
    "torch.compile, eager": partial(_compiled, backend="eager"),
    "torch.compile, aot_eager": partial(_compiled, backend="aot_eager"),
    "vmap": lambda model: torch.vmap(model)(batch()[:, None]),
    "jacrev": lambda model: torch.func.jacrev(lambda x: model(x)[:, :3])(batch()),
    "jvp": lambda model: torch.func.jvp(model, (batch(),), (batch(1),))[1],
    "hessian": lambda model: torch.func.hessian(lambda x: model(x).sum())(batch()),
    "per-sample gradients": lambda model: torch.vmap(
        torch.func.grad(lambda p, x: torch.func.functional_call(model, p, x[None]).sum()), in_dims=(None, 0)
    )(dict(model.named_parameters()), batch())["a.weight"],
    "fake tensors": lambda model: str(_fake(model)),
}


def _fake(model: nn.Module) -> Any:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        return model(torch.empty(2, 4)).shape


def _comparable(artefact: Any) -> Any:
    """Without the names of values and types, which count up in a process, and the places in source files."""
    if isinstance(artefact, Tensor):
        return artefact.detach()
    return re.sub(r"#[^\n]*|___torch_mangle_\d+\.|%[\w.]+", "", artefact)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_graph_made_of_a_watched_model_is_that_of_an_unwatched_one(name: str, steps: int, tmp_path: Path) -> None:
    def make(folder: Path | None) -> tuple[Any, Tensor]:
        model = seeded(Net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def train(times: int) -> None:
            for step in range(times):
                optimizer.zero_grad()
                model(batch(step)).square().mean().backward()
                optimizer.step()

        def run() -> Any:
            train(steps)
            artefact = _comparable(ARTEFACTS[name](model))
            train(2)
            return artefact

        if folder is None:
            artefact = run()
        else:
            with watching_everything(model, optimizer, folder):
                artefact = run()
        return artefact, model.a.weight.detach()

    (bare, weight), (watched, weight_watched) = make(None), make(tmp_path)
    assert torch.equal(bare, watched) if isinstance(bare, Tensor) else bare == watched
    assert torch.equal(weight, weight_watched)


def hooks_of(module: nn.Module) -> list[Any]:
    """What is called with a module, in its order."""
    tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return [vars(module).get("_compiled_call_impl"), *(list(table.items()) for table in tables)]


def test_scripting_leaves_the_hooks_where_they_were(tmp_path: Path) -> None:
    model = seeded(Net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    create = torch.jit._recursive.create_script_module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watching_everything(model, optimizer, tmp_path) as monitor:
            before = [hooks_of(module) for module in model.modules()]
            torch.jit.script(model)
            assert [hooks_of(module) for module in model.modules()] == before
            model(batch()).sum().backward()
            optimizer.step()
            assert monitor.latest()["output.norm"]["a"] > 0
    assert torch.jit._recursive.create_script_module is create


def test_a_probe_for_many_vectors_at_once_leaves_no_trace() -> None:
    """`torch.autograd.functional` and `is_grads_batched` use an older vmap than functorch's."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    taps = [Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad", stage=["final", "micro"])]
    x = batch().double()
    with gradlab.watch(model, optimizer, taps=taps, nonfinite=gradlab.NonFinite(), strict=True) as monitor:
        for _ in range(2):
            torch.autograd.functional.jacobian(model, x, vectorize=True)
            out = model(x)
            torch.autograd.grad(
                out, list(model.parameters()), torch.eye(6).double().reshape(6, 2, 3),
                is_grads_batched=True, retain_graph=True,
            )  # fmt: skip
            torch.vmap(lambda v: torch.autograd.grad(out, model[0].weight, v, retain_graph=True))(  # noqa: B023
                torch.eye(6).double().reshape(6, 2, 3)
            )
            optimizer.zero_grad()
            out.sum().backward()
            optimizer.step()
        logged = monitor.latest()
    weight = model[0].weight.grad
    assert weight is not None
    assert logged["weight_grad.norm"]["0.weight"] == pytest.approx(weight.norm().item(), rel=1e-6)
    assert logged["weight_grad.norm@micro"]["0.weight"] == pytest.approx(weight.norm().item(), rel=1e-6)
    assert logged["output_grad.norm"]["1"] == pytest.approx(6**0.5, rel=1e-6)


# --- Threads.


def test_an_actor_on_another_thread_disturbs_nothing_and_is_not_disturbed() -> None:
    def train(with_actor: bool) -> tuple[Any, dict[str, Tensor], list[BaseException]]:
        model = seeded(Net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        failures: list[BaseException] = []
        stop = threading.Event()
        started = threading.Event()

        def act() -> None:
            try:
                x = batch(99)
                with torch.no_grad():
                    while not stop.is_set():
                        model(x)
                        started.set()
            except BaseException as error:
                failures.append(error)
                started.set()

        frames: list[Any] = []
        taps = [Tap("*", of=["output", "output_grad"], stats=["norm", "std"]), Tap("*", of=["weight_grad"])]
        actor = threading.Thread(target=act)
        with gradlab.watch(model, optimizer, taps=taps, performance=True, strict=True) as monitor:
            if with_actor:
                actor.start()
                started.wait()
            for step in range(60):
                optimizer.zero_grad()
                model(batch(step)).square().mean().backward()
                optimizer.step()
                frames.append({name: dict(series) for name, series in monitor.latest().items()})
            stop.set()
            if with_actor:
                actor.join()
        return frames, model.state_dict(), failures

    frames, weights, failures = train(with_actor=True)
    assert failures == []
    bare, bare_weights, _ = train(with_actor=False)
    assert frames == bare
    assert all(torch.equal(weights[name], bare_weights[name]) for name in weights)


def test_threads_that_each_run_a_forward_for_one_backward_are_one_batch() -> None:
    """As pipelines and parameter servers do: the forwards run side by side, the backward on the main thread."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = [batch(seed).double() for seed in range(4)]
    outputs: dict[int, Tensor] = {}
    inside = threading.Barrier(4)

    def wait(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.wait()  # all threads are in the middle of their forwards at once

    handle = model[1].register_forward_pre_hook(wait)

    def forward(number: int) -> None:
        outputs[number] = model(inputs[number])

    taps = [Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad")]
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(2):
            threads = [threading.Thread(target=forward, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            optimizer.zero_grad()
            torch.stack([outputs[number].square().sum() for number in range(4)]).sum().backward()
            optimizer.step()
        logged = monitor.latest()
    handle.remove()
    whole = torch.cat(inputs)
    hidden = model[0](whole)
    out = model[2](torch.tanh(hidden))
    (grad,) = torch.autograd.grad(out.square().sum(), hidden)
    assert sorted(logged["output.norm"]) == ["0", "1", "2", "output"]
    assert logged["output.norm"]["0"] == pytest.approx(hidden.norm().item(), rel=1e-6)
    assert logged["output_grad.norm"]["0"] == pytest.approx(grad.norm().item(), rel=1e-6)
