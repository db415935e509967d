"""Nothing stays on a tensor that the user holds: parameters that modules hand out, inputs that require grad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab import JacobianSlice, NonFinite, Tap, watch


class Const(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(3))

    def forward(self) -> Tensor:
        return self.p


class HandsOut(nn.Module):
    """A part returns its parameter; so does the whole, beside a tensor of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.const, self.fc = Const(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.const.p, self.fc(x) + self.const() + self.const()


class OnlyParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.p


def hooks_on(*tensors: Tensor) -> list[Any]:
    return [t._backward_hooks for t in tensors] + [t._post_accumulate_grad_hooks for t in tensors]


def nothing(*tensors: Tensor) -> bool:
    return not any(hooks_on(*tensors))


@pytest.mark.parametrize("make", [HandsOut, OnlyParameter])
def test_nothing_stays_on_a_leaf_after_a_step_nor_after_close(make: Callable[[], nn.Module], tmp_path: Any) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4, 3, requires_grad=True)
    monitor = watch(
        model,
        optimizer,
        taps=[Tap(["*", "input*"], of=["output", "output_grad"])],
        jacobians=[JacobianSlice(of="fc", wrt="fc.weight", rows=1, mode="live")] if make is HandsOut else [],
        nonfinite=NonFinite(),
        logdir=tmp_path,
        strict=True,
    )
    leaves = (x, *model.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        out = model(x)
        loss = out.square().sum() if isinstance(out, Tensor) else out[0].sum() + out[1].square().sum()
        loss.backward()
        optimizer.step()
        assert not any(leaf._backward_hooks for leaf in leaves)
    monitor.close()
    assert nothing(*leaves)
    assert all(leaf._backward_hooks is None for leaf in leaves)


def test_the_gradient_at_a_parameter_that_is_handed_out_is_that_of_the_tensor() -> None:
    model = HandsOut()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(4, 3)
    with watch(model, optimizer, taps=[Tap(["const", "fc"], of=["output", "output_grad"])], strict=True) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            model(x)[1].square().sum().backward()
            optimizer.step()
        grad = model.const.p.grad
        assert grad is not None
        assert monitor.latest()["output_grad.norm"]["const"] == pytest.approx(float(grad.norm()), rel=1e-6)


def test_a_hook_of_the_users_own_on_the_same_leaf_stays() -> None:
    model = HandsOut()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: list[Tensor] = []
    with watch(model, optimizer, taps=[Tap("*", of="output_grad")], strict=True):
        out = model(torch.randn(4, 3))
        handle = model.const.p.register_hook(seen.append)
        out[1].sum().backward()
        optimizer.step()
        model(torch.randn(4, 3))[1].sum().backward()
        optimizer.step()
    assert len(seen) == 2 and len(model.const.p._backward_hooks or ()) == 1
    handle.remove()
    model.const.p.register_hook(seen.append)
    model(torch.randn(4, 3))[1].sum().backward()
    assert len(seen) == 3


def test_a_step_that_never_ends_leaves_nothing_after_close() -> None:
    model, x = HandsOut(), torch.randn(4, 3, requires_grad=True)
    monitor = watch(model, taps=[Tap(["*", "input"], of="output_grad")])
    model(x)[1].sum().backward()
    monitor.close()
    assert nothing(x, *model.parameters())
