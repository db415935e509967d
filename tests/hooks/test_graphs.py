"""A graph made of a watched model (scripted, traced, exported, compiled) is that of an unwatched one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hooks.example import Net, batch, seeded, watching_everything
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import gradlab
from gradlab import Tap


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
