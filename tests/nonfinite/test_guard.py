"""The guard names the op that made a gradient non-finite, leaves out the update, and saves the batch."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab import NonFinite, Tap


class Net(nn.Module):
    """Two layers with what a test gives in between."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.drop, self.b = nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.drop(self.a(x))))


def batch(seed: int = 0) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def bad_log(h: Tensor) -> Tensor:
    return torch.log(h * 0)


def bad_sqrt(h: Tensor) -> Tensor:
    return torch.sqrt(torch.relu(h) * 0)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, loss: Callable[[Any], Tensor] = torch.mean
) -> None:
    optimizer.zero_grad()
    loss(model(x)).backward()
    optimizer.step()


def origin_findings(monitor: gradlab.Monitor) -> list[gradlab.Finding]:
    return [finding for finding in monitor.findings if finding.kind == "nonfinite_origin"]


@pytest.mark.parametrize(
    "between, op, phase, advice",
    [(bad_log, "aten.log", "forward", "log1p"), (bad_sqrt, "SqrtBackward0", "backward", "sqrt(x + eps)")],
)
def test_the_op_the_line_and_its_inputs_are_named(between: Any, op: str, phase: str, advice: str) -> None:
    model = Net(between)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(), strict=True) as monitor:
        step(model, optimizer, batch())
        (found,) = origin_findings(monitor)
    assert found.step == 0 and op in found.message and phase in found.message
    assert f"{Path(__file__).name}:{between.__code__.co_firstlineno + 1}" in found.message
    assert "float32[5, 4] in [" in found.message and found.severity == "error"
    assert advice in found.advice


def test_an_update_that_is_left_out_changes_nothing_and_training_goes_on() -> None:
    model = Net(lambda h: h / (h.abs().amax() > 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True) as monitor:
        for number, x in enumerate((batch(1), batch(2) * float("inf"), batch(3))):
            torch.manual_seed(number)
            step(model, optimizer, x)
        assert all(p.grad is not None for p in model.parameters())
        (found,) = origin_findings(monitor)
    for number, x in enumerate((batch(1), None, batch(3))):
        torch.manual_seed(number)
        if x is not None:
            step(twin, twin_optimizer, x)
    assert found.step == 1 and "input" in found.message and "left out" in found.message
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_gradients_that_were_held_back_are_there_after_the_step() -> None:
    model = Net(bad_log)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True):
        step(model, optimizer, batch())
        assert not model.a.weight.grad.isfinite().all()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_loss_that_spoils_the_gradient_is_told_from_the_model() -> None:
    model = Net(torch.relu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True) as monitor:
        step(model, optimizer, batch(), lambda out: (out * 0).sqrt().sum())
        (found,) = origin_findings(monitor)
    assert "look into the loss" in found.message


def test_the_bad_one_of_several_micro_batches_is_found() -> None:
    model = Net(torch.relu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(), strict=True) as monitor:
        for x in (batch(), batch(1) / 0, batch(2)):
            model(x).sum().backward()
        optimizer.step()
        (found,) = origin_findings(monitor)
    assert "input" in found.message


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_step_with_a_closure_is_guarded_too(kind: type[torch.optim.Optimizer]) -> None:
    model = Net(bad_log)
    optimizer = kind(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch()).mean()
        loss.backward()
        return loss

    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True) as monitor:
        optimizer.step(closure)
        assert len(origin_findings(monitor)) == 1
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_finite_training_is_bit_identical_and_nothing_stays() -> None:
    results = []
    for nonfinite in (None, NonFinite(skip=True, save=True)):
        model = Net(F.gelu)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        torch.manual_seed(5)
        with gradlab.watch(model, optimizer, nonfinite=nonfinite, strict=True) as monitor:
            x = batch()
            kept = weakref.ref(x)
            for _ in range(3):
                step(model, optimizer, x)
            assert not monitor.findings
        del x
        gc.collect()
        assert kept() is None and not model._forward_hooks and not model._forward_pre_hooks
        results.append((model.state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(*[state for state, _ in results], rtol=0, atol=0)
    assert torch.equal(results[0][1], results[1][1])


def test_the_batch_is_saved_and_shows_the_fault_again(tmp_path: Path) -> None:
    model = Net(bad_sqrt)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = NonFinite(skip=True, save=True)
    with gradlab.watch(model, optimizer, nonfinite=options, logdir=tmp_path, strict=True) as monitor:
        step(model, optimizer, batch())
        (found,) = origin_findings(monitor)
    assert "nonfinite-step0.pt" in found.message
    saved = torch.load(tmp_path / "nonfinite-step0.pt")
    (one,) = saved["batches"]
    torch.testing.assert_close(one["args"], (batch(),))
    torch.set_rng_state(one["torch_rng_state"])
    model.zero_grad()
    model(*one["args"], **one["kwargs"]).backward(one["output_gradients"][""])
    assert not model.a.weight.grad.isfinite().all()
    assert "SqrtBackward0" in saved["origin"]


def test_it_speaks_once_for_a_run_of_bad_steps() -> None:
    model = Net(bad_log)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True) as monitor:
        for number in range(4):
            step(model, optimizer, batch(number))
        assert [found.step for found in origin_findings(monitor)] == [0]


def test_huge_but_finite_gradients_are_no_alarm() -> None:
    model = Net(torch.relu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True) as monitor:
        step(model, optimizer, batch(), lambda out: out.sum() * 1e30)
        assert not origin_findings(monitor)


class Masked(nn.Module):
    """Attention with a mask of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).T
        mask = torch.ones_like(scores).triu(1).bool()
        return scores.masked_fill(mask, float("-inf")).softmax(-1) @ x


def test_a_mask_of_minus_infinity_is_no_alarm() -> None:
    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taps = [Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad")]
    with gradlab.watch(model, optimizer, taps=taps, nonfinite=NonFinite(), strict=True) as monitor:
        step(model, optimizer, batch())
        assert monitor.latest()["output.norm"]["/masked_fill"] == float("inf")
        assert not monitor.findings


@pytest.mark.parametrize(
    "taps, site, words",
    [
        ([Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad")], "/log", "/mul before it is finite"),
        ([Tap("*", of="output_grad")], "output", "nearest the loss"),
        ([Tap("*", of="weight_grad")], "b.bias", "nearest the loss"),
        ([Tap("*", of="output")], "/log", "/mul before it is finite"),
    ],
)
def test_the_free_flags_tell_the_producer_from_the_propagators(taps: list[Tap], site: str, words: str) -> None:
    model = Net(bad_log)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        step(model, optimizer, batch(), lambda out: out.square().mean())
        (found,) = [finding for finding in monitor.findings if finding.kind == "nonfinite"]
    assert found.site == site and words in found.message


class Parts(nn.Module):
    """A model that nobody calls as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)


def test_a_model_that_is_never_called_as_a_whole_says_so() -> None:
    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, nonfinite=NonFinite(skip=True), strict=True) as monitor:
        model.a(batch() / 0).sum().backward()
        optimizer.step()
        (found,) = origin_findings(monitor)
    assert "not called as a whole" in found.message
