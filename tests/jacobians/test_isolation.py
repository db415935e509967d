"""Measuring leaves no trace: training, random numbers, buffers, modes, gradients and hooks are what they were."""

from __future__ import annotations

import copy
import gc
import random
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab.hooks import mute
from gradlab.jacobians.isolation.isolated import isolated
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.replayed import ReplayedSlice


class Busy(nn.Module):
    """Batch norm, dropout, spectral norm, a recurrent layer, a kept hidden tensor, a counter, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.rnn = nn.GRU(8, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.old = nn.Linear(8, 4)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.seen + 1
        h = self.drop(self.norm(torch.relu(self.a(x))))
        self.hidden = h
        if h.requires_grad:
            h.retain_grad()
        h = self.rnn(h[:, None])[0][:, 0]
        return self.old(h) + random.random() * 1e-3 + float(np.random.rand()) * 1e-3


SLICES = [
    JacobianSlice(of="output", wrt="input", every=1, samples=3),
    JacobianSlice(of="output", wrt="norm", every=1, rows=2),
    JacobianSlice(of="/relu", wrt="a.parametrizations.weight.original", every=1, rows=1),
    JacobianSlice(of="drop", wrt="a", every=1, cols=1),
]


def train(steps: int, around: Callable[[nn.Module, Tensor, int], None]) -> dict[str, Any]:
    """Everything that a training leaves behind."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Busy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        x = torch.randn(5, 6)
        optimizer.zero_grad()
        loss = model(x).square().mean()
        around(model, x, step)
        loss.backward()
        assert model.hidden.grad is not None
        around(model, x, step)
        optimizer.step()
        around(model, x, step)
        losses.append(loss.item())
    return {
        "losses": losses,
        "state": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "grads": [p.grad for p in model.parameters()],
        "hidden_grad": model.hidden.grad,
        "random": (torch.get_rng_state(), random.random(), np.random.rand()),
        "counts": (model.calls, model.seen, model.training, model.rnn.dropout),
    }


@pytest.mark.parametrize("mode", ["eval", "as_is"])
def test_training_is_bit_identical_with_probes_at_every_point_of_a_step(mode: Any) -> None:
    probes: list[ReplayedSlice] = []

    def measure(model: nn.Module, x: Tensor, step: int) -> None:
        if not probes:
            probes.extend(ReplayedSlice(spec, model, x) for spec in SLICES)
        for probe in probes:
            assert probe.measure(step).audit_error < 1e-5
        gradlab.jacobian(model, x, rows=1, mode=mode)

    plain = train(20, lambda *_: None)
    watched = train(20, measure)
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_measurement_changes_no_state_even_when_it_fails(fails: bool) -> None:
    model = Busy()
    x = torch.randn(5, 6)
    model(x).sum().backward()
    model.old.requires_grad_(False)
    model.drop.eval()
    handle = model.old.register_full_backward_hook(lambda *_: pytest.fail("a foreign backward hook ran"))
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    tensors = [*model.parameters(), *model.buffers()]
    before = [(id(t), t._version, t.requires_grad, id(t.grad), t.clone()) for t in tensors]
    python, numpy, cpu = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]

    if fails:
        with pytest.raises(gradlab.GradlabError):
            gradlab.jacobian(model, x, of="output", wrt="nowhere", mode="as_is")
    else:
        gradlab.jacobian(model, x, mode="as_is")
        gradlab.jacobian(model, x, wrt="rnn.weight_hh_l0")

    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
    for tensor, (identity, version, requires_grad, grad, value) in zip(tensors, before, strict=True):
        assert (id(tensor), tensor._version, tensor.requires_grad, id(tensor.grad)) == (
            identity,
            version,
            requires_grad,
            grad,
        )
        assert torch.equal(tensor, value)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), cpu)
    assert mute.depth == 0
    handle.remove()
    assert not model.old._backward_hooks


def test_the_probe_batch_is_not_written_to() -> None:
    x = torch.randn(3, 4)
    before = x.clone()
    gradlab.jacobian(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), x, of="output", wrt="1:in")
    assert torch.equal(x, before)
    assert x.grad is None and not x.requires_grad


def test_a_live_graph_survives_a_measurement_in_training_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(5, 4)
    loss = model(x).square().sum()
    mean = model[1].running_mean.clone()
    gradlab.jacobian(model, x, mode="as_is")
    assert torch.equal(model[1].running_mean, mean)
    loss.backward()


def test_no_tensor_of_the_replay_stays_alive() -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = torch.tanh(x)
            alive.append(weakref.ref(self.kept))
            return self.kept * 2

    model = nn.Sequential(nn.Linear(4, 40), Noting(), nn.Linear(40, 3))
    gc.disable()
    try:
        block = gradlab.jacobian(model, torch.randn(2, 4), of="1", wrt="input")
        gradlab.jacobian(model, torch.randn(2, 4))
        with pytest.raises(gradlab.GradlabError):
            gradlab.jacobian(model, torch.randn(2, 4), rows=99)
        assert len(alive) == 3
        assert [ref() for ref in alive[:2]] == [None, None]
    finally:
        gc.enable()
    gc.collect()
    assert alive[2]() is None
    assert isinstance(block.values, np.ndarray)


def test_eval_mode_is_the_default_and_does_not_call_train() -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> Any:
            raise AssertionError("train() was called")

    model = nn.Sequential(nn.Linear(4, 4), Stubborn(0.5))
    found = gradlab.jacobian(model, torch.randn(1, 4)).values
    assert np.array_equal(found, model[0].weight.detach().numpy())
    assert model[1].training
    assert not np.array_equal(gradlab.jacobian(model, torch.randn(1, 4), mode="as_is").values, found)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_context_of_the_caller_does_not_matter(context: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    x = torch.randn(2, 4)
    expected = gradlab.jacobian(model, x).values
    with context():
        assert np.array_equal(gradlab.jacobian(model, x).values, expected)
        gradlab.jacobian(model, x.clone(), wrt="0.weight")


def test_gradlabs_own_hooks_are_muted() -> None:
    inside: list[bool] = []
    model = nn.Linear(3, 3)
    model.register_forward_hook(lambda *_: inside.append(mute.depth > 0))
    gradlab.jacobian(model, torch.randn(1, 3))
    assert inside == [True]
    assert mute.depth == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_measured_from_inside_and_stays_compiled(backend: str) -> None:
    compiled_calls: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled_calls.append(1)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model = torch.compile(copy.deepcopy(plain), backend=counting)
    x = torch.randn(2, 4, dtype=torch.float64)
    model(x).sum().backward()
    for of, wrt in [("output", "input"), ("2", "0"), ("1", "0.weight")]:
        expected = gradlab.jacobian(plain, x, of=of, wrt=wrt)
        found = gradlab.jacobian(model, x, of=of, wrt=wrt)
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.engine == expected.engine
    model(x).sum().backward()
    assert len(compiled_calls) == 1
    torch._dynamo.reset()


def test_a_compiled_layer_inside_is_measured_by_the_batched_engine() -> None:
    plain = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 3))).double()
    model = copy.deepcopy(plain)
    model[1] = torch.compile(model[1], backend="aot_eager")
    x = torch.randn(2, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        # Tracing a layer in the middle of a graph makes Dynamo look at the .grad of a non-leaf tensor.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        model(x)
    block = gradlab.jacobian(model, x, of="1.0", wrt="input", rows=4)
    np.testing.assert_array_equal(block.values, gradlab.jacobian(plain, x, of="1.0", wrt="input", rows=4).values)
    assert block.engine == "vmap"
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "sites", [("body.1", "input"), ("output", "body.0"), ("body.2", "body.1"), ("body.2:in", "body.0.weight")]
)
def test_a_cut_or_a_stop_inside_a_checkpoint_is_exact(sites: tuple[str, str]) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, through: bool) -> None:
            super().__init__()
            self.through = through
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(checkpoint(self.body, x, use_reentrant=False) if self.through else self.body(x))

    model, x = Checkpointed(True).double(), torch.randn(2, 4, dtype=torch.float64)
    plain = Checkpointed(False).double()
    plain.load_state_dict(model.state_dict())
    of, wrt = sites
    found = gradlab.jacobian(model, x, of=of, wrt=wrt)
    np.testing.assert_allclose(found.values, gradlab.jacobian(plain, x, of=of, wrt=wrt).values, rtol=1e-12)


def test_the_encoder_fast_path_does_not_hide_sites() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert gradlab.jacobian(layer, torch.randn(1, 3, 8), of="linear1", wrt="norm1").values.shape == (48, 24)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_model_may_catch_any_exception_on_the_way() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.a(x)
            except Exception:
                return x
            raise RuntimeError("nothing behind `of` is run")

    assert gradlab.jacobian(Careful(), torch.randn(1, 3), of="a", wrt="input").values.shape == (3, 3)


def test_isolation_yields_the_module_inside_the_wrappers() -> None:
    inner = nn.Linear(2, 2)
    with isolated(nn.DataParallel(inner)) as core:
        assert core is inner
        assert not any(p.requires_grad for p in core.parameters())
    assert all(p.requires_grad for p in inner.parameters())
