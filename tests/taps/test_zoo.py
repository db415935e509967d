"""Every number of every awkward model equals what plain float64 autograd says of the same tensors."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

import gradlab
from gradlab import Tap
from gradlab.frame import is_absent
from gradlab.sites.forward import forward_walk

STATS = ["norm", "rms", "mean", "std", "max_abs", "zeros", "nonfinite"]


def everything(model: nn.Module, stats: list[str]) -> list[Tap]:
    """Taps on all that there is, inputs too."""
    has_children = any(not isinstance(child, nn.ParameterList) for child in model.children())
    inputs = ["input*", "*:in*"] if has_children else ["input*"]
    return [
        Tap(["*", *inputs], of=["output", "output_grad"], stats=stats),
        Tap("*", of=["weight", "weight_grad", "update"], stats=stats),
    ]


def made(case: zoo.Case) -> nn.Module:
    """The model in float64, with the same weights each time."""
    torch.manual_seed(1)
    return case.make().double()


def reference_stats(x: Tensor) -> dict[str, float]:
    """All stats of a tensor, straight from their definitions."""
    x = torch.view_as_real(x) if x.is_complex() else x
    x = x.detach().double()
    if not x.numel():
        return dict.fromkeys(STATS, math.nan) | {"norm": 0.0, "nonfinite": 0.0}
    return {
        "norm": x.norm().item(),
        "rms": x.square().mean().sqrt().item(),
        "mean": x.mean().item(),
        "std": x.std(correction=0).item(),
        "max_abs": x.abs().max().item(),
        "zeros": (x == 0).double().mean().item(),
        "nonfinite": float((~x.isfinite()).sum()),
    }


def reference(model: nn.Module, x: Tensor, case: zoo.Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and gradients by site, through gradient edges and one autograd.grad, without checkpointing."""
    values: dict[str, Tensor] = {}
    edges: dict[str, Any] = {}

    def see(site: str, value: Tensor) -> None:
        is_one = not torch._C._functorch.is_functorch_wrapped_tensor(value)  # else it stands for many
        if is_one and (value.is_floating_point() or value.is_complex()):
            values[site] = value.detach().clone()
            if value.requires_grad:
                edges[site] = get_gradient_edge(value)

    with forward_walk(model, see):
        loss = case.loss(model(x))
    grads = torch.autograd.grad(loss, list(edges.values()), allow_unused=True)
    return values, {site: g for site, g in zip(edges, grads, strict=True) if g is not None}


@pytest.mark.parametrize("stats, steps", [(STATS, 1), (["norm"], 1), (["norm"], 3)])
@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_every_number_equals_float64_autograd(
    name: str, stats: list[str], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = zoo.ZOO[name]
    x = case.batch().double()
    model, *twins = (made(case) for _ in range(3))
    parameters, weights = (dict(one.named_parameters()) for one in (model, twins[0]))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=everything(model, stats), strict=True) as monitor:
        for _ in range(steps):  # small tensors wait for each other once a first step has shown that they may
            for twin in twins:
                twin.load_state_dict(copy.deepcopy(model.state_dict()))
            optimizer.zero_grad()
            torch.manual_seed(2)
            case.loss(model(x)).backward()
            optimizer.step()
        latest = monitor.latest()

    monkeypatch.setattr(zoo, "checkpoint", lambda function, *args, **kwargs: function(*args))
    torch.manual_seed(2)
    case.loss(twins[0](x)).backward()
    torch.manual_seed(2)
    values, grads = reference(twins[1], x, case)
    expected = {
        "output": values,
        "output_grad": grads,
        "weight": weights,
        "weight_grad": {n: p.grad for n, p in weights.items() if p.grad is not None},
        "update": {n: p.detach() - weights[n].detach() for n, p in parameters.items()},
    }
    for quantity, tensors in expected.items():
        for stat in stats:
            series = latest.get(f"{quantity}.{stat}")
            logged = {s: v for s, v in series.items() if not is_absent(np.float32([v]))[0]} if series else {}
            assert sorted(logged) == sorted(tensors), (quantity, stat)
            for site, tensor in tensors.items():
                want = reference_stats(tensor)[stat]
                assert logged[site] == pytest.approx(want, rel=2e-5, abs=1e-6, nan_ok=True), (quantity, stat, site)
