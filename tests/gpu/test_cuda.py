"""On a CUDA device: no synchronisation, one transfer a logged step, and the numbers of plain autograd."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import gradlab
from gradlab import Tap
from gradlab.frame import is_absent
from gradlab.sites.forward import forward_walk
from gradlab.stats.derive import NEEDS

pytestmark = pytest.mark.gpu
# Asked for by deterministic algorithms; read when cuBLAS is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def mean_abs(x: Tensor) -> Tensor:
    """A user's own stat."""
    return x.float().abs().mean()


STATS = list(NEEDS)
TAPS = {
    "outputs": [Tap(["*", "input*"], of="output", stats=STATS)],
    "output gradients": [Tap("*", of="output_grad", stats=STATS)],
    "functional ops": [Tap("*/*", of=["output", "output_grad"])],
    "weights": [Tap("*", of="weight", stats=STATS)],
    "weight gradients": [Tap("*", of="weight_grad", stats=STATS)],
    "every stage": [Tap("*", of="weight_grad", stage=["final", "clipped", "micro"])],
    "updates": [Tap("*", of=["update", "weight"])],
    "kept tensors": [Tap("*", of="output_grad", keep=True)],
    "own stat": [Tap("*", of="output", stats=mean_abs)],
}
TAPS["everything"] = [tap for taps in list(TAPS.values()) for tap in taps]


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions use TF32, ten bits of mantissa, where nobody forbids it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Net(nn.Module):
    """Linear, convolution, norm, functional activations, attention, a residual and an in-place op."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(8, 16, 3, padding=1), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(F.gelu(self.conv(x)).transpose(1, 2))
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(self.act(h) * 2)


def make(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    """A model, its optimizer and a batch, always the same."""
    torch.manual_seed(0)
    model = Net().cuda()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, **options), torch.randn(8, 8, 12).cuda()


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float().square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, precision: AbstractContextManager) -> None:
    """One step of two micro-batches, with clipping."""
    optimizer.zero_grad()
    for micro in x.chunk(2):
        with precision:
            loss = loss_of(model, micro)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def transfers_to_host(step: Callable[[], None]) -> int:
    """How many copies from the device to the host a step makes."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    names = [event.name() for event in recorded.profiler.kineto_results.events()]
    assert any("gemm" in name or "Memcpy" in name or "elementwise" in name for name in names), "no device was traced"
    return sum(name.startswith("Memcpy DtoH") for name in names)


def test_the_debug_mode_finds_a_read() -> None:
    value = torch.ones((), device="cuda")
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        value.item()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(TAPS))
def test_a_watched_step_never_waits_for_the_device(kind: str, precision: torch.dtype, tmp_path: Path) -> None:
    model, optimizer, x = make()
    autocast = torch.autocast("cuda", precision) if precision != torch.float32 else nullcontext()
    train(model, optimizer, x, autocast)
    with gradlab.watch(model, optimizer, taps=TAPS[kind], logdir=tmp_path, strict=True) as monitor:
        for _ in range(2):  # slots are made, and the libraries of the device set up
            train(model, optimizer, x, autocast)
        with no_synchronisation():
            for _ in range(5):
                train(model, optimizer, x, autocast)
        assert monitor.latest()


@pytest.mark.parametrize("kind", ["weight gradients", "everything"])
def test_a_logged_step_makes_one_transfer_to_the_host(kind: str) -> None:
    model, optimizer, x = make(foreach=True)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad", every=10**6)]):
        for _ in range(3):
            train(model, optimizer, x, nullcontext())
        bare = transfers_to_host(lambda: train(model, optimizer, x, nullcontext()))
    with gradlab.watch(model, optimizer, taps=TAPS[kind], strict=True):
        for _ in range(3):
            train(model, optimizer, x, nullcontext())
        watched = transfers_to_host(lambda: train(model, optimizer, x, nullcontext()))
    # Micro-batches have rows of their own, which are put together on the device.
    assert watched == bare + 1


def test_watching_changes_no_bit_of_the_training() -> None:
    stats = [stat for stat in STATS if stat != "hist"]  # torch.histc has no deterministic CUDA kernel
    taps = [
        Tap("*", of=["output", "output_grad"], stats=stats),
        Tap("*", of=["weight", "weight_grad", "update"], stats=stats),
    ]
    results = []
    for watched in (False, True):
        model, optimizer, x = make()
        monitor = gradlab.watch(model, optimizer, taps=taps, strict=True) if watched else None
        torch.use_deterministic_algorithms(True)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                for _ in range(4):
                    train(model, optimizer, x, torch.autocast("cuda", torch.bfloat16))
        finally:
            torch.use_deterministic_algorithms(False)
        if monitor is not None:
            monitor.close()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def reference(model: nn.Module, x: Tensor, precision: AbstractContextManager, scale: float = 1.0) -> dict[str, float]:
    """Norms of all outputs, their gradients and the weights' gradients, reduced in float64 on the host."""
    twin = copy.deepcopy(model)
    values: dict[str, Tensor] = {}

    def see(site: str, value: Tensor) -> Tensor | None:
        if not value.is_floating_point() or not value.requires_grad:
            return None
        values[site] = value = value.clone()  # in-place ops that follow do not change what was seen
        value.retain_grad()
        values[f"{site} copied"] = value.detach().clone()
        return value.clone()

    with forward_walk(twin, see), precision:
        loss = loss_of(twin, x)
    (loss * scale).backward()
    norms: dict[str, float] = {}
    for site, value in values.items():
        if site.endswith(" copied"):
            norms[f"output.norm {site.removesuffix(' copied')}"] = _norm(value)
        elif value.grad is not None:
            norms[f"output_grad.norm {site}"] = _norm(value.grad) / scale
    for name, parameter in twin.named_parameters():
        norms[f"weight_grad.norm {name}"] = _norm(parameter.grad) / scale
    return norms


def _norm(tensor: Tensor) -> float:
    return tensor.detach().cpu().double().norm().item()


def watched_norms(monitor: gradlab.Monitor) -> dict[str, float]:
    """The newest norms in the words of `reference`."""
    return {
        f"{metric} {site}": float(value)
        for metric, series in monitor.latest().items()
        if metric in ("output.norm", "output_grad.norm", "weight_grad.norm")
        for site, value in zip(series.schema.sites, series.array, strict=True)
        if not is_absent(np.array([value]))[0]
    }


NORMS = [Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad")]


def compare(found: dict[str, float], wanted: dict[str, float], tolerance: float) -> None:
    """Each watched number equals the reference's; both have nearly the same sites."""
    shared = sorted(found.keys() & wanted.keys())
    assert len(shared) >= 25, (sorted(found), sorted(wanted))
    np.testing.assert_allclose([found[key] for key in shared], [wanted[key] for key in shared], rtol=tolerance)


def test_numbers_equal_float64_autograd_on_the_host() -> None:
    model, _, x = make()
    model, x = model.double(), x.double()
    wanted = reference(copy.deepcopy(model).cpu(), x.cpu(), nullcontext())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=NORMS, strict=True) as monitor:
        model(x).square().mean().backward()
        optimizer.step()
        compare(watched_norms(monitor), wanted, 1e-5)


@pytest.mark.parametrize("steps", [1, 4])  # small tensors wait for each other once first steps have shown that they may
def test_numbers_in_float32_are_those_of_float64_to_its_precision(steps: int) -> None:
    model, _, x = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    wanted = reference(copy.deepcopy(model).cpu().double(), x.cpu().double(), nullcontext())
    with gradlab.watch(model, optimizer, taps=NORMS, strict=True) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
            torch.cuda.synchronize()
        compare(watched_norms(monitor), wanted, 1e-3)


def test_the_op_behind_a_non_finite_gradient_is_named_and_the_update_left_out() -> None:
    model, optimizer, x = make()
    before = copy.deepcopy(model.state_dict())
    with gradlab.watch(model, optimizer, nonfinite=gradlab.NonFinite(skip=True), strict=True) as monitor:
        (loss_of(model, x) * 0).sqrt().backward()
        optimizer.step()
        (found,) = [finding for finding in monitor.findings if finding.kind == "nonfinite_origin"]
    assert "look into the loss" in found.message
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_numbers_under_bfloat16_autocast_are_those_of_the_tensors_there() -> None:
    model, optimizer, x = make()
    wanted = reference(model, x, torch.autocast("cuda", torch.bfloat16))
    with gradlab.watch(model, optimizer, taps=NORMS, strict=True) as monitor:
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(model, x)
        loss.backward()
        optimizer.step()
        compare(watched_norms(monitor), wanted, 2e-2)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_gradients_are_unscaled_under_a_grad_scaler(fused: bool, told: bool) -> None:
    model, optimizer, x = make(fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    wanted = reference(model, x, torch.autocast("cuda", torch.float16), scale=1024.0)
    with gradlab.watch(model, optimizer, taps=NORMS, scaler=scaler if told else None, strict=True) as monitor:
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(model, x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        compare(watched_norms(monitor), wanted, 2e-2)


def test_a_fused_step_under_a_grad_scaler_never_waits() -> None:
    model, optimizer, x = make(fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(model, x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step()
    with gradlab.watch(model, optimizer, taps=TAPS["everything"], scaler=scaler, strict=True):
        step()
        step()
        with no_synchronisation():
            for _ in range(3):
                step()


def test_a_step_that_the_scaler_skips_shows_its_overflow_or_nothing() -> None:
    model, optimizer, x = make()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=10**6)
    with gradlab.watch(model, optimizer, taps=NORMS, scaler=scaler, strict=True) as monitor:
        for _ in range(40):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = loss_of(model, x)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        norms = monitor.history("weight_grad.norm", "head.weight")[1]
    assert np.isfinite(norms[-1]) and norms[-1] > 0
    assert scaler.get_scale() < 2.0**40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch.compile has to say when it is first used
def test_parameters_of_a_model_in_cuda_graphs_are_watched() -> None:
    model, _, x = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    wanted = reference(copy.deepcopy(model).cpu().double(), x.cpu().double(), nullcontext())
    compiled = torch.compile(model, mode="reduce-overhead")
    taps = [Tap("*", of=["weight_grad", "weight", "update"])]
    steps = 6  # warm up, record the graph, replay it
    with gradlab.watch(compiled, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            loss_of(compiled, x).backward()
            optimizer.step()
        for name, _ in model.named_parameters():
            norms = monitor.history("weight_grad.norm", name)[1]
            np.testing.assert_allclose(norms, [wanted[f"weight_grad.norm {name}"]] * steps, rtol=2e-3)
