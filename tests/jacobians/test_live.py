"""Live slices: on the training step's own graph, right, and without training noticing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab.errors import GradlabWarning
from gradlab.frame import JacobianBlock
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.subgraph import parameter_named
from gradlab.sinks import MemorySink


class Net(nn.Module):
    """Batch norm, dropout, an in-place op, and two hidden tensors that retain their gradients, one of them no site."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.relu_(self.norm(self.a(x))))
        self.module_output, self.op_result = h, torch.sin(h) * 2
        for tensor in (self.module_output, self.op_result):
            if tensor.requires_grad:
                tensor.retain_grad()
        return self.b(self.op_result)


def live(of: str, wrt: str, **options: Any) -> JacobianSlice:
    return JacobianSlice(of=of, wrt=wrt, mode="live", **{"every": 1, **options})


SLICES = [
    live("output", "input", samples=2),
    live("output", "a", samples=3, reduce="none", rows=2),
    live("/relu_", "a", of_map="softmax", samples=2),
    live("output", "b.weight", groups={"first": [0, 1], "last": [3]}),
    live("/sin", "norm", rows=3, every=2),
]


def train(specs: list[Any], steps: int = 6) -> tuple[dict[str, Any], list[tuple[int, JacobianBlock]]]:
    """What training leaves behind, and the blocks."""
    torch.manual_seed(0)
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    sink = MemorySink(last=200)
    seen: list[Tensor | None] = []
    monitor = gradlab.watch(model, optimizer, taps=[], jacobians=specs, sinks=[sink], strict=True) if specs else None
    for _ in range(steps):
        x, y = torch.randn(5, 6).double(), torch.randn(5, 4).double()
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        seen += [model.module_output.grad, model.op_result.grad, *(p.grad for p in model.parameters())]
        seen = [None if t is None else t.clone() for t in seen]
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return {"state": model.state_dict(), "grads": seen, "random": torch.get_rng_state()}, list(sink.blocks)


def test_training_is_bit_identical_with_live_slices_beside_retained_gradients() -> None:
    plain, _ = train([])
    watched, blocks = train(SLICES)
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert len(blocks) == 6 * 4 + 3
    assert all(block.audit_error < 1e-12 for _, block in blocks)
    assert {block.engine for _, block in blocks} <= {"vmap", "loop"}


@pytest.mark.parametrize("engine", ["vmap", "is_grads_batched", "loop"])
def test_every_engine_leaves_retained_gradients_alone(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlab.jacobians.live._ENGINES", [engine])
    plain, _ = train([])
    watched, blocks = train([live("output", "a", rows=2)])
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert {block.engine for _, block in blocks} == {engine}


def one_step(model: nn.Module, x: Tensor, spec: JacobianSlice, **options: Any) -> JacobianBlock:
    sink = MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with gradlab.watch(model, optimizer, taps=[], jacobians=[spec], sinks=[sink], strict=True, **options):
        model(x).square().sum().backward()
        optimizer.step()
    ((_, block),) = sink.blocks
    return block


@pytest.mark.parametrize(
    ("of", "wrt", "options"),
    [
        ("output", "input", {}),
        ("output", "0", {"rows": [2, 0]}),
        ("1", "0:in", {"cols": 3}),
        ("output", "0.weight", {"samples": 3}),
        ("output", "input", {"of_map": "softmax", "samples": 3, "reduce": "rms"}),
        ("output", "1", {"weights": [[1.0, 0.0, -1.0]], "samples": 2}),
    ],
)
def test_a_live_slice_equals_the_replayed_one_where_modes_do_not_matter(of: str, wrt: str, options: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    block = one_step(model, x, live(of, wrt, **options))
    replayed = one_step(model, x, JacobianSlice(of=of, wrt=wrt, every=1, **options))
    np.testing.assert_allclose(block.values, replayed.values, rtol=1e-12, atol=1e-14)
    assert block.row_names == replayed.row_names and block.summaries["fro"] == pytest.approx(replayed.summaries["fro"])


def test_it_is_the_jacobian_of_this_steps_dropout_and_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Dropout(0.5), nn.Linear(8, 3, bias=False)).double()
    kept: list[Tensor] = []
    model[1].register_forward_hook(lambda m, args, out: kept.append((out / args[0]).detach()))
    block = one_step(model, torch.randn(1, 4, dtype=torch.float64), live("output", "input"))
    expected = model[2].weight @ (kept[0][0][:, None] * model[0].weight)
    np.testing.assert_allclose(block.values, expected.detach().numpy(), rtol=1e-12)


def test_an_in_place_operation_behind_a_site_does_not_move_it() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu_(self.a(x)) * 3

    model = InPlace().double()
    x = torch.randn(1, 4, dtype=torch.float64)
    block = one_step(model, x, live("output", "a"))
    np.testing.assert_array_equal(block.values, 3 * torch.diag((model.a(x)[0] > 0).double()).numpy())


def test_evaluation_between_steps_and_further_micro_batches_are_left_out() -> None:
    model = nn.Linear(4, 3)
    sink = MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer, taps=[], jacobians=[live("output", "input")], sinks=[sink], strict=True):
        for _ in range(2):
            with torch.no_grad():
                model(torch.randn(2, 4))
            weight = model.weight.detach().clone()
            for _ in range(3):
                model(torch.randn(2, 4)).sum().backward()
            optimizer.step()
    assert [step for step, _ in sink.blocks] == [0, 1]
    np.testing.assert_allclose(sink.blocks[-1][1].values, weight.numpy(), rtol=1e-6)


def test_inside_a_checkpoint_and_on_a_later_step_beside_taps() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    def weights(specs: list[JacobianSlice], sink: MemorySink) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Checkpointed()
        optimizer = torch.optim.Adam(model.parameters())
        taps = [gradlab.Tap("*", of="output_grad")]
        options = {"taps": taps, "jacobians": specs, "sinks": [sink], "strict": True, "first_step": 1}
        with gradlab.watch(model, optimizer, **options):
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.randn(5, 4)).square().sum().backward()
                optimizer.step()
        return model.state_dict()

    sink = MemorySink()
    specs = [
        live("output", "body.0", every=2),
        live("output", "input", every=2),
        live("body.1", "body.0.weight", every=2),
    ]
    torch.testing.assert_close(weights(specs, sink), weights([], MemorySink()), rtol=0, atol=0)
    assert [step for step, _ in sink.blocks] == [2, 2, 2, 4, 4, 4]
    assert all(block.audit_error < 1e-5 for _, block in sink.blocks)


def test_under_autocast_it_is_that_of_the_lower_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    x, sink = torch.randn(2, 4), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    spec = live("output", "input", samples=2)
    with gradlab.watch(model, optimizer, taps=[], jacobians=[spec], sinks=[sink], strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().sum()
        loss.backward()
        optimizer.step()
    exact = gradlab.jacobian(model, x).values
    found = sink.blocks[0][1].values
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_no_graph_stays_alive() -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = torch.tanh(x)
            alive.append(weakref.ref(kept))
            return kept * 2

    model = nn.Sequential(nn.Linear(4, 5), Noting())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer, taps=[], jacobians=[live("output", "0")], strict=True):
        for _ in range(3):
            out = model(torch.randn(2, 4))
            out.sum().backward()
            optimizer.step()
        del out
        gc.collect()
        assert [ref() for ref in alive] == [None, None, None]
    assert not model[1]._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3)), live("0", "1"), "wrt='1' is no site in this forward."),
        (
            lambda: nn.Linear(4, 3).requires_grad_(False),
            live("output", "weight"),
            "is frozen, so the live graph has no",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 3)), live("output", "input", rows=9), "asks for the first 9 entries"),
        (
            lambda: torch.compile(nn.Sequential(nn.Linear(4, 3)), backend="eager"),
            live("output", "0"),
            "mode='live' cannot see sites inside a compiled graph",
        ),
    ],
)
def test_what_is_wrong_is_said_and_training_goes_on(make: Any, spec: JacobianSlice, message: str) -> None:
    model = make()
    other = nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)
    with pytest.warns(GradlabWarning, match="was switched off") as caught:
        monitor = gradlab.watch(model, optimizer, taps=[], jacobians=[spec])
        for _ in range(3):
            optimizer.zero_grad()
            other(model(torch.randn(2, 4))).sum().backward()
            optimizer.step()
        monitor.close()
    assert message in str(caught[0].message)
    assert len([w for w in caught if "switched off" in str(w.message)]) == 1
    torch._dynamo.reset()


def test_looking_for_a_parameter_computes_none() -> None:
    """A parametrised weight is a property that runs a power iteration: looked at, it would be another one."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    before = layer.parametrizations.weight[0]._u.clone()
    assert parameter_named(layer, "weight") is None
    found = parameter_named(nn.Sequential(layer), "0.parametrizations.weight.original")
    assert found is layer.parametrizations.weight.original
    assert torch.equal(layer.parametrizations.weight[0]._u, before)


def test_taps_see_the_same_with_probes_on() -> None:
    def train_with_taps(specs: list[Any]) -> dict[str, list[float]]:
        torch.manual_seed(0)
        model = Net().double()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        found: dict[str, list[float]] = {}
        taps = [gradlab.Tap("*", of=["output", "output_grad"]), gradlab.Tap("*", of="weight_grad")]
        with gradlab.watch(model, optimizer, taps=taps, jacobians=specs, strict=True) as monitor:
            for _ in range(4):
                optimizer.zero_grad()
                F.mse_loss(model(torch.randn(5, 6).double()), torch.ones(5, 4).double()).backward()
                optimizer.step()
                for metric, series in monitor.latest().items():
                    for site, value in series.items():
                        found.setdefault(f"{metric} {site}", []).append(value)
        return found

    plain = train_with_taps([])
    assert len(plain) > 20
    replays = [JacobianSlice(of="output", wrt="input", every=1), JacobianSlice(of="/relu_", wrt="a.weight", every=2)]
    watched = train_with_taps([*SLICES, *replays])
    assert {name: watched.get(name) for name in plain} == plain
