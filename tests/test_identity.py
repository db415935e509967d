"""Nothing is keyed by a user's `__hash__` or `__eq__`: tables by identity, and models whose parts define both."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab import JacobianSlice, NonFinite, Profile, Tap, watch
from gradlab.identity import IdentityDict, IdentitySet, WeakIdentityDict, is_among
from gradlab.sites.forward import sites_of
from gradlab.sites.names import module_names


class ChangingHash(nn.Linear):
    """As torchmetrics' metrics are: the hash goes by a state that each forward changes."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)

    def __hash__(self) -> int:
        return hash((id(self), self.calls))


class EqualByValue(nn.Linear):
    """Two of one shape are equal, so that torch's own `parameters()` skips the second."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EqualByValue) and other.in_features == self.in_features

    def __hash__(self) -> int:
        return hash((self.in_features, self.out_features))


class EqualByTensor(nn.Linear):
    """Equality is a tensor, whose truth is an error."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def __eq__(self, other: Any) -> Any:
        return self.weight == getattr(other, "weight", 0.0)

    __hash__ = nn.Linear.__hash__


class Unhashable(nn.Linear):
    """As a dataclass of modules is: torch's `parameters()` raises, so that the optimizer has what it is given."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(4, 4)


class RaisingOptimizer(torch.optim.SGD):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    def __hash__(self) -> int:
        raise RuntimeError("not to be hashed")


AWKWARD = [ChangingHash, EqualByValue, Unhashable]


def gradient_norms(model: nn.Sequential, x: Tensor) -> dict[str, float]:
    model(x).square().sum().backward()
    return {
        f"{number}.{name}": float(p.grad.norm())
        for number, part in enumerate(model)
        for name, p in part.named_parameters(recurse=False)
        if p.grad is not None
    }


@pytest.mark.parametrize("kind", AWKWARD)
def test_modules_with_a_hash_of_their_own_are_told_apart(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(kind(), nn.ReLU(), kind())
    x = torch.randn(3, 4)
    expected = gradient_norms(model, x)
    weights = [p for part in model for p in part.parameters(recurse=False)]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    taps = [Tap(["*", "*:in"], of=["weight_grad", "output", "output_grad"])]
    with watch(model, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert dict(monitor.latest()["weight_grad.norm"].items()) == pytest.approx(expected)
        assert {"0", "1", "2:in", "output"} <= set(monitor.latest()["output_grad.norm"].schema.sites)
    assert model(x).shape == (3, 4)
    assert all(not part._forward_pre_hooks and "_compiled_call_impl" not in vars(part) for part in model)


@pytest.mark.parametrize("kind", [ChangingHash, EqualByValue, EqualByTensor])
def test_everything_that_names_modules_goes_by_identity(kind: Callable[[], nn.Module], tmp_path: Any) -> None:
    model = nn.Sequential(kind(), nn.Tanh(), kind())
    x = torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert list(module_names(model).values()) == ["", "0", "1", "2"]
    assert {"0", "1", "2.weight"} <= {site.name for site in sites_of(model, x)}
    slices = [JacobianSlice(of="output", wrt="0", rows=2), JacobianSlice(of="2", wrt="0", rows=2, mode="live")]
    with watch(
        model,
        optimizer,
        taps=[Tap("*", of="output")],
        jacobians=slices,
        nonfinite=NonFinite(),
        profile=Profile(wait=1, warmup=1, active=1),
        logdir=tmp_path,
        strict=True,
    ) as monitor:
        for step in range(5):
            optimizer.zero_grad()
            (model(x).square().sum() * (float("nan") if step == 4 else 1.0)).backward()
            optimizer.step()
    assert any(finding.kind == "nonfinite_origin" for finding in monitor.findings)


def test_optimizers_that_cannot_be_compared_are_counted() -> None:
    model = nn.Linear(4, 3)
    first, second = (RaisingOptimizer([p], lr=0.1) for p in model.parameters())
    with watch(model, [first, second], strict=True) as monitor:
        for _ in range(3):
            model(torch.randn(2, 4)).sum().backward()
            first.step()
            second.step()
        monitor.add_optimizer(first)
        assert monitor.step == 3 and len(monitor.optimizers) == 2


def test_a_metric_inside_a_model_is_watched() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.acc = nn.Linear(4, 3), torchmetrics.MeanSquaredError()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = watch(net, optimizer, taps=[Tap("*", of="output", every=2)], strict=True)
    for _ in range(4):
        optimizer.zero_grad()
        out = net(torch.randn(6, 4))
        out.sum().backward()
        optimizer.step()
        net.acc(out.detach(), torch.zeros_like(out))
    monitor.close()
    assert list(monitor.latest()["output.norm"].schema.sites)[:2] == ["fc", "output"]
    assert "_compiled_call_impl" not in vars(net.acc)


def test_the_tables_ask_no_key_anything() -> None:
    keys = [EqualByTensor(), EqualByTensor(), Unhashable()]
    table = IdentityDict((key, number) for number, key in enumerate(keys))
    assert [table[key] for key in keys] == [0, 1, 2] and list(table.values()) == [0, 1, 2]
    assert keys[0] in table and EqualByTensor() not in table
    assert table.setdefault(keys[0], 9) == 0 and table.pop(keys[0]) == 0 and len(table) == 2
    members = IdentitySet(keys[:2])
    members.add(keys[1])
    assert len(members) == 2 and keys[1] in members and keys[2] not in members
    assert is_among(keys[2], keys) and not is_among(EqualByTensor(), keys)


def test_a_weak_table_forgets_a_key_that_dies() -> None:
    table: Any = WeakIdentityDict()
    key = EqualByTensor()
    table[key] = 1
    assert table[key] == 1 and EqualByTensor() not in table
    del key
    gc.collect()
    assert len(table) == 0
