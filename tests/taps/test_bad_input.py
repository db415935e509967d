"""What cannot be watched is said once, in one sentence, and training goes on; never a wrong number in silence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning, TapError


class Net(nn.Module):
    """Two layers, one that never runs, and what a test gives in between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.middle, self.b, self.idle = nn.Linear(4, 4), Between(between), nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        side = self.middle(h)
        return self.b(side if side.is_floating_point() and side.device == h.device else h)


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def train(model: nn.Module, taps: list[Tap], **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Three steps: what was warned of, and the newest numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradlab.watch(model, optimizer, taps=taps, **options) as monitor:
            for seed in range(3):
                optimizer.zero_grad()
                model(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).sum().backward()
                optimizer.step()
            return [str(w.message) for w in caught if w.category is GradlabWarning], monitor.latest()


def vector(x: Tensor) -> Tensor:
    return x[0]


def to_meta(x: Tensor) -> Tensor:
    return x.to("meta")


def to_integers(x: Tensor) -> Tensor:
    return x.argmax(-1)


def to_quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8)


BAD = {
    "a stat that gives a vector": (Net(), Tap("a", of="output", stats=[vector]), "'vector' gave a tensor of shape [4]"),
    "an integer tensor": (Net(to_integers), Tap("middle", of="output"), "its tensor is torch.int64"),
    "a quantized tensor": (Net(to_quantized), Tap("middle", of="output"), "its tensor is torch.qint8"),
    "a meta tensor": (Net(to_meta), Tap("middle", of="output"), "has no values"),
    "a module that never runs": (Net(), Tap("idle", of="output"), "the module idle, which was not called"),
    "a pattern that matches nothing": (Net(), Tap("mddle", of="output"), "Did you mean 'middle'"),
}


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("name", BAD)
def test_a_tap_that_cannot_work_is_switched_off_with_one_sentence(name: str) -> None:
    model, tap, words = BAD[name]
    warned, latest = train(copy.deepcopy(model), [tap, Tap("b", of="output")])
    assert len(warned) == 1 and words in warned[0], warned
    assert latest["output.norm"]["b"] > 0


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("name", BAD)
def test_where_strictness_is_asked_for_it_raises(name: str) -> None:
    model, tap, words = BAD[name]
    with pytest.raises(TapError) as raised:
        train(copy.deepcopy(model), [tap], strict=True)
    assert words in str(raised.value)


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(TapError, match="the optimizer SGD owns none of the model's parameters"):
        gradlab.watch(Net(), optimizer)


def test_a_second_watch_with_a_mistake_leaves_the_first_alone() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer) as monitor:
        with pytest.raises(TapError, match="no tensor matches"):
            gradlab.watch(model, optimizer, taps=[gradlab.Tap("nothing", of="weight_grad")])
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        assert monitor.latest()["weight_grad.norm"]["a.weight"] > 0


def test_a_hook_of_the_user_that_changes_a_gradient_is_seen_wherever_it_was_registered() -> None:
    model = Net()
    changed: list[Tensor] = []

    def double(gradient: Tensor) -> Tensor:
        changed.append(2 * gradient)
        return changed[-1]

    model.a.register_forward_hook(lambda module, args, output: output.register_hook(double) and None)
    model.middle.register_forward_pre_hook(lambda module, args: args[0].register_hook(double) and None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[Tap("a", of="output_grad")], strict=True) as monitor:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        assert monitor.latest()["output_grad.norm"]["a"] == pytest.approx(changed[-1].norm().item())
    assert len(changed) == 2


def test_data_written_behind_autograds_back_is_read_before_it() -> None:
    def binarise(h: Tensor) -> Tensor:
        h.data = h.data.sign()  # as some quantised networks do: no version counter tells
        return h * 1.0

    model = Net(binarise)
    norms = []
    model.a.register_forward_hook(lambda module, args, output: norms.append(output.detach().norm().item()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[Tap("a", of="output")], strict=True) as monitor:
        for _ in range(4):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
            assert monitor.latest()["output.norm"]["a"] == pytest.approx(norms[-1], rel=1e-5)


def test_a_tensor_that_is_written_to_later_than_at_first_has_no_number_that_once() -> None:
    modes = iter([False, False, True, True])

    def at_times(h: Tensor) -> Tensor:
        return h.mul_(2.0) if next(modes) else h * 2.0

    model = Net(at_times)
    norms = []
    model.a.register_forward_hook(lambda module, args, output: norms.append(output.detach().norm().item()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlab.watch(model, optimizer, taps=[Tap("a", of="output")], strict=True) as monitor:
        for _ in range(4):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
        steps, values = monitor.history("output.norm", "a")
    seen = dict(zip(steps.tolist(), values.tolist(), strict=True))
    expected = {step: pytest.approx(norms[step], rel=1e-5) for step in (0, 1, 3)}
    assert {step: value for step, value in seen.items() if value == value} == expected
