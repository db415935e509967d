"""Sharpness against the dense float64 Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import gradlab
from gradlab.errors import GradlabWarning, JacobianError
from gradlab.jacobians.options import Sharpness
from gradlab.sinks import MemorySink

X, Y = torch.randn(8, 5, dtype=torch.float64), torch.randint(0, 3, (8,))


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y)


def dense(model: nn.Module) -> np.ndarray:
    """All eigenvalues of the Hessian, largest first."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def of_flat(flat: Tensor) -> Tensor:
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        return F.cross_entropy(functional_call(model, {n: v.view_as(p) for (n, p), v in parts}, (X,)), Y)

    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    found: np.ndarray = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of_flat, flat)).flip(0).numpy()
    return found


def test_the_largest_eigenvalues_are_those_of_the_dense_hessian() -> None:
    model = net()
    block = gradlab.loss_sharpness(model, loss, top=3, products=60, tolerance=1e-9)
    np.testing.assert_allclose(block.values[0], dense(model)[:3], rtol=1e-6)
    assert block.summaries["lambda_1"] == pytest.approx(block.values[0, 0])
    assert (block.kind, block.name) == ("sharpness", "loss__sharpness__parameters")


def test_few_products_suffice_for_a_percent() -> None:
    block = gradlab.loss_sharpness(net(), loss)
    assert block.summaries["lambda_1"] == pytest.approx(dense(net())[0], rel=0.01)
    assert block.audit_error < 1e-3


def test_frozen_parameters_are_left_out_and_nothing_changes() -> None:
    model = net()
    model[0].requires_grad_(False)
    loss(model).backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    found = gradlab.loss_sharpness(model, loss, products=60, tolerance=1e-9).summaries["lambda_1"]
    torch.testing.assert_close([p.grad for p in model.parameters()], before, rtol=0, atol=0)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        features = torch.tanh(model[0](X))
    last = model[2]
    hessian = torch.autograd.functional.hessian(
        lambda w, b: F.cross_entropy(features @ w.T + b, Y), (last.weight.detach(), last.bias.detach())
    )
    rows = [torch.cat([part.reshape(size, -1) for part in row], 1) for row, size in zip(hessian, (18, 3), strict=True)]
    assert found == pytest.approx(float(torch.linalg.eigvalsh(torch.cat(rows))[-1]), rel=1e-6)


def test_attention_is_differentiated_twice_by_plain_kernels() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 3, 8)
    assert gradlab.loss_sharpness(layer, lambda m: m(x).square().mean()).summaries["lambda_1"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: m(X), "the loss must be a scalar tensor"),
        (lambda m: m(X).sum() * float("nan"), "the loss is nan"),
        (lambda m: m(X).detach().sum(), "the loss must be a scalar tensor that depends on"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(JacobianError) as caught:
        gradlab.loss_sharpness(net(), make)
    assert message in str(caught.value)


def test_it_is_logged_while_training() -> None:
    model, sink = net(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(
        model, optimizer, taps=[], jacobians=[Sharpness(every=2, loss=loss, top=2)], sinks=[sink], strict=True
    ):
        for _ in range(3):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    assert [step for step, _ in sink.blocks] == [0, 2]
    assert sink.blocks[-1][1].summaries["lambda_1"] == pytest.approx(dense(model)[0], rel=0.01)


def test_without_a_loss_it_is_switched_off() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(GradlabWarning, match="the sharpness was switched off: it needs loss="):
        monitor = gradlab.watch(model, optimizer, taps=[], jacobians=[Sharpness()])
        loss(model).backward()
        optimizer.step()
        monitor.close()
