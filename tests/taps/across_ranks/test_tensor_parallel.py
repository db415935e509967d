"""Sharded and tensor-parallel models in a process group of one, where each piece is the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning
from gradlab.taps.across_ranks.tensor_parallel import combinable, is_tensor_parallel


@pytest.fixture(autouse=True)
def group_of_one(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def truth() -> dict[str, float]:
    """The norms of all gradients, by autograd."""
    net = model()
    net(torch.ones(3, 4).double()).square().sum().backward()
    return {name: p.grad.norm().item() for name, p in net.named_parameters() if p.grad is not None}


def parallel() -> nn.Module:
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(model(), init_device_mesh("cpu", (1,)), plan)


@pytest.mark.parametrize("kind", ["fsdp2", "tensor parallel"])
@pytest.mark.parametrize("across_ranks", [False, True])
def test_what_is_sharded_over_one_rank_is_measured(kind: str, across_ranks: bool) -> None:
    net = parallel() if kind == "tensor parallel" else fully_shard(model(), mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with gradlab.watch(net, optimizer, across_ranks=across_ranks, strict=True) as monitor:
        net(torch.ones(3, 4).double()).square().sum().backward()
        optimizer.step()
        assert dict(monitor.latest()["weight_grad.norm"].items()) == pytest.approx(truth(), rel=1e-6)


def test_a_gradient_of_partial_sums_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = init_device_mesh("cpu", (1,))
    weight = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()]))
    net = nn.ParameterList([weight])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    seen = []
    redistribute = DTensor.redistribute
    monkeypatch.setattr(DTensor, "redistribute", lambda *a, **k: seen.append(k) or redistribute(*a, **k))
    with gradlab.watch(net, optimizer, strict=True) as monitor:
        weight.to_local(grad_placements=[Partial()]).mul(2).sum().backward()
        assert weight.grad is not None and weight.grad.placements == (Partial(),)
        assert seen == [{"placements": (Replicate(),)}]
        optimizer.step()
        assert monitor.latest()["weight_grad.norm"]["0"] == pytest.approx(12**0.5)


def test_rules_of_outputs_are_left_out_over_ranks_of_a_tensor_parallel_model() -> None:
    rules = [Tap("*", of=["output", "weight_grad"], every=3), Tap("*", of="output_grad"), Tap("0.*", of="weight")]
    net = parallel()
    assert is_tensor_parallel(net) and not is_tensor_parallel(model())
    assert combinable(rules, model()) == tuple(rules)
    assert combinable(rules[2:], net) == tuple(rules[2:])
    with pytest.warns(GradlabWarning, match="outputs of Sequential and their gradients are not measured"):
        kept = combinable(rules, net)
    assert [(rule.quantities, rule.every) for rule in kept] == [(("weight_grad",), 3), (("weight",), 1)]
