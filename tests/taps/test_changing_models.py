"""Models that change while they are watched: layers replaced, added, frozen, pruned, swapped between phases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as prune
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gradlab import JacobianSlice, Monitor, Tap, watch
from gradlab.sinks import MemorySink
from gradlab.taps.structure import Structure

EVERYTHING = [Tap("*", of=["weight_grad", "weight", "update", "output", "output_grad"])]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class LowRank(nn.Module):
    """An adapter around a frozen layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def replace_head(model: Net) -> None:
    model.head = nn.Linear(6, 5)


def replace_by_hand(model: Net) -> None:
    model._modules["head"] = nn.Linear(6, 3, bias=False)


def replace_inner(model: Net) -> None:
    model.body[0] = nn.Linear(4, 6)


def grow(model: Net) -> None:
    model.body.append(nn.Linear(6, 6))


def grow_inside_a_leaf(model: Net) -> None:
    model.head.register_module("extra", nn.Linear(3, 3))
    forward = type(model.head).forward
    model.head.forward = lambda x: model.head.extra(forward(model.head, x))  # type: ignore[assignment, method-assign]


def shrink(model: Net) -> None:
    del model.body[1]


def rename(model: Net) -> None:
    head = model.head
    del model.head
    model.last = head
    model.forward = lambda x: model.last(model.body(x))  # type: ignore[method-assign, assignment]


def adapt(model: Net) -> None:
    model.body[0] = LowRank(model.body[0])  # type: ignore[arg-type]


def assign(model: Net) -> None:
    state = {name: p.detach().clone() * 2 for name, p in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def prune_all(model: Net) -> None:
    prune.l1_unstructured(model.head, "weight", amount=0.5)  # a layer of one parameter, which keeps its identity
    prune.random_unstructured(model.body[0], "weight", amount=0.5)


def parametrize_one(model: Net) -> None:
    parametrize.register_parametrization(model.head, "weight", Half())


def normalise(model: Net) -> None:
    parametrizations.weight_norm(model.body[0])


def unfreeze(model: Net) -> None:
    model.body.requires_grad_(True)


def to_double_by_new_parameters(model: Net) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


CHANGES: list[Callable[[Net], None]] = [
    replace_head, replace_by_hand, replace_inner, grow, grow_inside_a_leaf, shrink, rename, adapt, assign, prune_all,
    parametrize_one, normalise, unfreeze, to_double_by_new_parameters,
]  # fmt: skip


def trained(change: Callable[[Net], None], *, watched: bool, every: int = 1, same_optimizer: bool = True) -> Any:
    """Four steps, with the change before the third: the monitor, the last gradients, the outputs of modules."""
    torch.manual_seed(0)
    model = Net()
    if change is unfreeze:
        model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taps = [Tap(tap.at, of=tap.of, every=every) for tap in EVERYTHING]
    monitor = watch(model, taps=taps, strict=True) if watched else None
    x, outputs, before = torch.randn(5, 4), {}, {}
    for number in range(4):
        if number == 2:
            change(model)
            if same_optimizer:
                optimizer.param_groups[0]["params"] = [p for p in model.parameters()]
            else:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        handles = [
            part.register_forward_hook(lambda m, args, out, name=name: outputs.__setitem__(name or "output", out))
            for name, part in model.named_modules()
        ] if number == 3 else []  # fmt: skip
        model(x).square().sum().backward()
        for handle in handles:
            handle.remove()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return monitor, model, before, {name: float(out.detach().norm()) for name, out in outputs.items()}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("same_optimizer", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed_is_watched_as_it_is_now(
    change: Callable[[Net], None], same_optimizer: bool, every: int
) -> None:
    monitor, model, before, outputs = trained(change, watched=True, every=every, same_optimizer=same_optimizer)
    _, bare, _, _ = trained(change, watched=False, same_optimizer=same_optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bare.parameters(), strict=True))
    latest: dict[str, Any] = {
        name: {site: value for site, value in series.items() if value == value}
        for name, series in monitor.latest().items()
    }
    parameters = dict(model.named_parameters())
    grads = {name: float(p.grad.norm()) for name, p in parameters.items() if p.grad is not None}
    assert latest["weight_grad.norm"] == pytest.approx(grads, rel=1e-5)
    assert latest["weight.norm"] == pytest.approx({name: float(p.norm()) for name, p in before.items()}, rel=1e-5)
    updates = {name: float((p.detach() - before[name]).norm()) for name, p in parameters.items()}
    assert latest["update.norm"] == pytest.approx(updates, rel=1e-4, abs=1e-7)
    assert monitor.step == 4
    seen = {site: value for site, value in latest["output.norm"].items() if "/" not in site}
    assert {site: seen.get(site) for site in outputs} == pytest.approx(outputs, rel=1e-5)
    assert monitor.findings == []


def test_a_layer_that_is_gone_is_absent_and_comes_back() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taps = [Tap("*", of=["weight_grad", "output"])]
    x, first = torch.randn(5, 4), model.body[0]
    with watch(model, optimizer, taps=taps, strict=True) as monitor:
        present = []
        for layer in (first, nn.Identity(), first):
            model.body[0] = layer
            model.head = nn.Linear(4 if isinstance(layer, nn.Identity) else 6, 3)
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            latest = monitor.latest()
            present.append(
                [float(latest["weight_grad.norm"]["body.0.weight"]) > 0, latest["output.norm"]["body.0"] > 0]
            )
        assert present == [[True, True], [False, True], [True, True]]


def test_lazy_modules_are_watched_from_their_first_forward_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(4, 3)
    stages = [Tap("*", of="weight_grad", stage=["final", "clipped"]), *EVERYTHING]
    with watch(model, optimizer, taps=stages, strict=True) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            grads = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
            assert len(grads) == 6
            latest = monitor.latest()
            assert dict(latest["weight_grad.norm"].items()) == pytest.approx(grads, rel=1e-5)
            assert dict(latest["weight_grad.norm@clipped"].items()) == pytest.approx(grads, rel=1e-5)
            weights = {name: float(p.detach().norm()) for name, p in model.named_parameters()}
            assert dict(latest["weight.norm"].items()) == pytest.approx(weights, rel=1e-5)
            assert {"0", "1", "2", "output"} <= set(latest["output.norm"].schema.sites)


def test_a_layer_that_is_made_in_the_first_forward_is_watched_from_the_next_step_on() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc: nn.Module = nn.Linear(4, 4)
            self.projection: nn.Module | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.projection is None:
                self.projection = nn.Linear(4, 2)
            return self.projection(self.fc(x))

    model = Grows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=[Tap("*", of=["weight_grad", "output"])], strict=True) as monitor:
        for _ in range(2):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
        latest = monitor.latest()
        assert latest["weight_grad.norm"]["projection.weight"] > 0 and latest["output.norm"]["projection"] > 0


def test_a_pattern_may_match_later_additions_alone() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=[Tap("*.up*", of=["output", "weight_grad"])]) as monitor:
        with pytest.warns(UserWarning, match=r"no tensor matches '\*.up\*'"):
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()
        adapt(model)
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        assert set(monitor.latest()["output.norm"].schema.sites) == {"body.0.up"}


@pytest.mark.parametrize("given", [True, False])
def test_heads_swapped_between_phases_count_one_step_each(given: bool) -> None:
    model = Net()
    head = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with Monitor(model, head if given else None, strict=True) as monitor:
        ends = []
        for phase in range(3):
            if phase:
                model.head = nn.Linear(6, 3, bias=False)
                head_before, head = head, torch.optim.SGD(model.head.parameters(), lr=0.1)
                if given:
                    monitor.add_optimizer(head)
                assert head_before is not head
            for _ in range(2):
                model.zero_grad()
                model(torch.randn(5, 4)).square().sum().backward()
                norm = float(model.head.weight.grad.norm())  # type: ignore[union-attr]
                head.step()
                ends.append(monitor.step)
                assert monitor.latest()["weight_grad.norm"]["head.weight"] == pytest.approx(norm, rel=1e-5)
        assert ends == [1, 2, 3, 4, 5, 6]


def test_single_backwards_of_layers_that_are_thawed_are_seen() -> None:
    model = Net()
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=[Tap("*", of="weight_grad", stage=["micro", "final"])], strict=True) as monitor:
        for step in range(4):
            model.body.requires_grad_(step >= 2)
            optimizer.zero_grad()
            for _ in range(2):
                model(torch.randn(5, 4)).sum().backward()
            optimizer.step()
            value = monitor.latest()["weight_grad.norm@micro"]["body.0.weight"]
            assert (value > 0) == (step >= 2)


def test_parts_that_are_thawed_are_noticed_where_the_whole_is_never_called() -> None:
    model = Net()
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, strict=True) as monitor:
        for step in range(5):
            if step == 2:
                model.body.requires_grad_(True)
                model.head.requires_grad_(False)
            optimizer.zero_grad()
            nn.functional.linear(
                nn.functional.linear(torch.randn(5, 4), model.body[0].weight), model.head.weight
            ).sum().backward()  # type: ignore[arg-type]
            optimizer.step()
        assert monitor.latest()["weight_grad.norm"]["body.0.weight"] > 0


def test_weights_that_are_lent_for_a_call_are_no_change() -> None:
    model = Net()
    fast = {name: (p.detach() * 2).requires_grad_() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=EVERYTHING, strict=True) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            inner = torch.func.functional_call(model, fast, (torch.randn(5, 4),)).sum()
            (inner + model(torch.randn(5, 4)).sum()).backward()
            norm = float(model.head.weight.grad.norm())  # type: ignore[union-attr]
            optimizer.step()
            assert monitor.latest()["weight_grad.norm"]["head.weight"] == pytest.approx(norm, rel=1e-5)
        assert [site for site in monitor.sites() if "weight" in site] == ["body.0.weight", "head.weight"]


def test_flops_are_counted_again(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counts = []
    with watch(model, optimizer, logdir=tmp_path, strict=True) as monitor:
        for step in range(10):
            if step == 5:
                model[1] = nn.Linear(4, 40)
            optimizer.zero_grad()
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()
            counts.append(monitor._training_step.performance.flops)  # type: ignore[union-attr]
    unit = 2 * 2 * 4 * 4
    assert counts[4] == 2 * unit + 3 * unit and counts[-1] == 2 * unit + 30 * unit


def test_a_schedule_of_jacobians_follows_the_model() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    memory = MemorySink()
    x = torch.randn(5, 4)
    slices = [
        JacobianSlice(of="output", wrt="head.weight", samples=1, every=1),
        JacobianSlice(of="output", wrt="body", mode="live", samples=1, every=1),
    ]
    with watch(model, optimizer, taps=[], jacobians=slices, sinks=[memory], probe=x, strict=True):  # type: ignore[list-item]
        for step in range(4):
            if step == 2:
                model.head = nn.Linear(6, 5)
                optimizer.param_groups[0]["params"] = list(model.parameters())
            model(x).sum().backward()
            optimizer.step()
    shapes = [block.values.shape for _, block in memory.blocks]
    assert len(shapes) == 8
    assert [shape[-2:] for shape in shapes[0::2]] == [(3, 18), (3, 18), (5, 30), (5, 30)]


def test_the_sign_of_a_change() -> None:
    model = Net()
    sign = Structure(model)
    assert not sign.has_changed()
    model.head.weight.data = model.head.weight.data * 2
    torch.optim.SGD(model.parameters(), lr=0.1)
    model.eval().train()
    model.half().float()
    model.register_buffer("mean", torch.zeros(3))
    assert not sign.has_changed()
    for change in CHANGES:
        if change is not unfreeze:
            model = Net()
            sign = Structure(model)
            change(model)
            assert sign.has_changed(), change.__name__


def test_a_copy_of_what_was_replaced_is_let_go() -> None:
    import gc
    import weakref

    model = Net()
    optimizer = torch.optim.SGD([*model.body.parameters()], lr=0.1)
    gone = weakref.ref(model.head)
    with watch(model, optimizer, taps=[Tap(["*", "*:in"], of=["weight_grad", "output"])], strict=True):
        for step in range(3):
            if step == 1:
                model.head = copy.deepcopy(model.head)
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()
        gc.collect()
        assert gone() is None
