"""Statistics beyond the plain reductions: histograms, own functions, gain, cosine, micro-batches and noise scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning, TapError
from gradlab.events import event_files, read_events
from gradlab.stats.parts import HIST_EDGES


def mlp() -> nn.Sequential:
    """A small float64 network."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(seed: int, size: int = 8) -> Tensor:
    """[size, 4] float64."""
    return torch.randn(size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *batches: Tensor) -> None:
    """One optimizer step of one or several micro-batches."""
    optimizer.zero_grad()
    for x in batches:
        model(x).square().sum().backward()
    optimizer.step()


def reference_histogram(x: Tensor) -> np.ndarray:
    """Counts over log2 magnitude by numpy, in float64."""
    with np.errstate(divide="ignore"):
        exponents = np.log2(np.abs(x.detach().numpy().ravel()))
    return np.histogram(np.clip(exponents, HIST_EDGES[0], HIST_EDGES[-1] - 1e-3), bins=HIST_EDGES)[0]


def test_histograms_count_every_element_by_the_log_of_its_magnitude(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    taps = [Tap("0", of="output", stats="hist"), Tap("*", of="weight_grad", stats="hist")]
    with gradlab.watch(model, optimizer, taps=taps, logdir=tmp_path, strict=True) as monitor:
        parts = batch(1)[:3], batch(1)[3:]
        step(model, optimizer, *parts)
        latest = monitor.latest()
    assert np.array_equal(latest["output.hist"]["0"], reference_histogram(model[0](batch(1))))
    for name, p in model.named_parameters():
        assert np.array_equal(latest["weight_grad.hist"][name], reference_histogram(p.grad))
    (file,) = event_files(tmp_path)
    (event,) = [e for e in read_events(file) if e.tag.startswith("gradlab/weight_grad.hist/")]
    assert event.value.shape == (4, 64) and event.metadata["edges"] == list(HIST_EDGES)


def test_zeros_are_in_the_first_bin_and_infinities_in_the_last() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * x

    model = Constant()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradlab.watch(model, optimizer, taps=[Tap("output", of="output", stats=["hist", "nonfinite"])]) as monitor:
        model(torch.tensor([0.0, 0.0, torch.inf, torch.nan, 1.0, -3.0])).sum().backward()
        optimizer.step()
        counts = monitor.latest()["output.hist"]["output"]
        assert monitor.latest()["output.nonfinite"]["output"] == 2
    assert {HIST_EDGES[i]: counts[i] for i in np.flatnonzero(counts)} == {-48: 2, 0: 1, 1: 1, 15: 1}


def test_a_stat_of_the_users_own_is_logged_under_its_name() -> None:
    def abs_sum(x: Tensor) -> Tensor:
        return x.abs().sum()

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad", stats=["norm", abs_sum])]) as monitor:
        step(model, optimizer, batch(1))
        logged = dict(monitor.latest()["weight_grad.abs_sum"].items())
    assert logged == pytest.approx({n: p.grad.abs().sum().item() for n, p in model.named_parameters()})


def test_a_stat_that_gives_a_vector_is_switched_off_by_name() -> None:
    def rows(x: Tensor) -> Tensor:
        return x.sum(0)

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradlab.watch(model, optimizer, taps=[Tap("0", of="output", stats=rows)]):
        message = (
            r"the tap at '0' was switched off: the stat 'rows' gave a tensor of shape \[6\]; a stat gives a 0-d tensor"
        )
        with pytest.warns(GradlabWarning, match=message):
            step(model, optimizer, batch(1))
    with (
        gradlab.watch(model, optimizer, taps=[Tap("0", of="output", stats=rows)], strict=True),
        pytest.raises(TapError, match="the stat 'rows' gave"),
    ):
        step(model, optimizer, batch(1))


def test_gain_is_the_norm_of_the_input_gradient_by_that_of_the_output_gradient() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradlab.watch(model, optimizer, taps=[Tap(["*", "*:in"], of="output_grad")], strict=True) as monitor:
        step(model, optimizer, batch(1))
        gain = dict(monitor.latest()["gain"].items())
    h = model[0](batch(1))
    a = model[1](h)
    out = model[2](a)
    at_h, at_a, at_out = torch.autograd.grad(out.square().sum(), [h, a, out])
    assert gain["1"] == pytest.approx((at_h.norm() / at_a.norm()).item())
    assert gain["2"] == pytest.approx((at_a.norm() / at_out.norm()).item())


def test_cosine_compares_with_the_previous_logged_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad", stats="cosine")], strict=True) as monitor:
        grads = []
        for seed in range(3):
            step(model, optimizer, batch(seed, 3), batch(seed + 10, 5))
            grads.append(model[0].weight.grad.flatten().clone())
        _, logged = monitor.history("weight_grad.cosine", "0.weight")
    assert np.isnan(logged[0])
    for index in (1, 2):
        want = torch.cosine_similarity(grads[index], grads[index - 1], dim=0).item()
        assert logged[index] == pytest.approx(want, rel=1e-6)


def test_the_micro_stage_is_the_gradient_of_the_last_backward_alone() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    taps = [Tap("*", of="weight_grad", stage=["micro", "final"])]
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        step(model, optimizer, batch(1), batch(2), batch(3))
        micro = dict(monitor.latest()["weight_grad.norm@micro"].items())
    model.zero_grad()
    model(batch(3)).square().sum().backward()
    assert micro == pytest.approx({n: p.grad.norm().item() for n, p in model.named_parameters()}, rel=1e-6)


def test_the_noise_scale_follows_its_formula_on_the_gradients_of_the_micro_batches() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    parts = [batch(seed) for seed in range(4)]
    with gradlab.watch(
        model, optimizer, taps=[Tap("*", of="weight_grad", stage=["micro", "final"])], strict=True
    ) as monitor:
        step(model, optimizer, *parts)
        logged = monitor.latest()["noise_scale"]
    k, signal_sum, noise_sum = len(parts), 0.0, 0.0
    for name, p in model.named_parameters():
        grads = [torch.autograd.grad(model(x).square().sum(), p)[0] for x in parts]
        small = sum(g.square().sum().item() for g in grads) / k
        big = (sum(grads) / k).square().sum().item()
        signal, noise = (k * big - small) / (k - 1), (small - big) / (1 - 1 / k)
        assert logged[name] == pytest.approx(noise / signal, rel=1e-4)
        signal_sum, noise_sum = signal_sum + signal, noise_sum + noise
    assert logged["all parameters"] == pytest.approx(noise_sum / signal_sum, rel=1e-4)


def test_a_long_gradient_has_its_true_norm_wherever_it_is_taken() -> None:
    model = nn.Linear(2048, 2048)
    x = torch.randn(16, 2048, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for extra in ({}, {"stats": ["norm", "rms"]}):
        taps = [Tap("*", of=["weight_grad", "weight", "update"], **extra), Tap("*", of="output_grad")]
        with gradlab.watch(model, optimizer, taps=taps) as monitor:
            before = model.weight.detach().clone()
            optimizer.zero_grad()
            model(x).square().sum().backward()
            grad = model.weight.grad.double().norm().item()
            optimizer.step()
            got = {
                metric: monitor.latest()[f"{metric}.norm"]["weight"] for metric in ("weight_grad", "weight", "update")
            }
        assert got["weight_grad"] == pytest.approx(grad, rel=1e-6)
        assert got["weight"] == pytest.approx(before.double().norm().item(), rel=1e-6)
        change = model.weight.detach().double() - before.double()
        assert got["update"] == pytest.approx(change.norm().item(), rel=1e-6)
