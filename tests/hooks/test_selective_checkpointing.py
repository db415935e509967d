"""Selective checkpointing, whose dispatch mode hands results of the forward to the recomputation: none of ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hooks.example import STATS, batch, seeded
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import gradlab
from gradlab import JacobianSlice, Tap


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
