"""Steps and their numbers in real training loops: accumulation, loss scales, clipping, closures, probes, failures."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning, TapError
from gradlab.frame import Frame, is_absent
from gradlab.sinks import MemorySink

ALL_GRADIENTS = [Tap("*", of="output_grad"), Tap("*", of="weight_grad")]


def mlp() -> nn.Sequential:
    """A small float64 network."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(seed: int, size: int = 8) -> Tensor:
    """[size, 4] float64."""
    return torch.randn(size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    """The optimizer of these tests."""
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def values(monitor: gradlab.Monitor, metric: str) -> dict[str, float]:
    """The newest series of a metric as a dict."""
    return dict(monitor.latest()[metric].items())


def test_micro_batches_give_the_numbers_of_one_large_batch() -> None:
    whole, split = mlp(), mlp()
    split.load_state_dict(whole.state_dict())
    taps = [
        Tap("*", of=["output", "output_grad"], stats=["norm", "mean", "std", "max_abs", "zeros"]),
        Tap("*", of="weight_grad", stats=["norm", "std"]),
    ]
    optimizers = sgd(whole), sgd(split)
    with (
        gradlab.watch(whole, optimizers[0], taps=taps, strict=True) as one,
        gradlab.watch(split, optimizers[1], taps=taps, strict=True) as many,
    ):
        x = batch(1)
        whole(x).square().sum().backward()
        for piece in (x[:2], x[2:3], x[3:]):
            split(piece).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        assert one.latest().keys() == many.latest().keys()
        for metric in one.latest():
            assert values(many, metric) == pytest.approx(values(one, metric), rel=1e-6), metric


def test_clipping_is_seen_in_its_own_stage() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="weight_grad", stage=["final", "clipped"])]) as monitor:
        model(batch(1)).square().sum().backward()
        total = nn.utils.clip_grad_norm_(model.parameters(), 0.5).item()
        optimizer.step()
        final, clipped = values(monitor, "weight_grad.norm"), values(monitor, "weight_grad.norm@clipped")
    assert np.sqrt(sum(v**2 for v in final.values())) == pytest.approx(total)
    assert np.sqrt(sum(v**2 for v in clipped.values())) == pytest.approx(0.5)


@pytest.mark.parametrize("how", ["given", "found"])
@pytest.mark.parametrize("unscale_first", [False, True])
def test_the_loss_scale_is_taken_out(how: str, unscale_first: bool) -> None:
    plain, scaled = mlp().float(), mlp().float()
    scaled.load_state_dict(plain.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = sgd(plain), sgd(scaled)
    options = {"scaler": scaler} if how == "given" else {}
    with (
        gradlab.watch(plain, optimizers[0], taps=ALL_GRADIENTS, strict=True) as expected,
        gradlab.watch(scaled, optimizers[1], taps=ALL_GRADIENTS, strict=True, **options) as monitor,
    ):
        x = batch(1).float()
        plain(x).square().sum().backward()
        optimizers[0].step()
        scaler.scale(scaled(x).square().sum()).backward()
        if unscale_first:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
        for metric in expected.latest():
            assert values(monitor, metric) == pytest.approx(values(expected, metric), rel=1e-5)


def test_a_step_that_the_scaler_skips_leaves_no_trace_in_the_next_frame() -> None:
    model = mlp().float()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS, strict=True) as monitor:
        for poison in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(batch(2).float()).square().sum() * poison).backward()
            scaler.step(optimizer)
            scaler.update()
        assert monitor.step == 1
        gradients = values(monitor, "output_grad.norm")
    assert all(np.isfinite(v) for v in gradients.values())


def test_an_optimizer_with_a_closure_is_read_after_the_closure() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, strict=True) as monitor:

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(batch(3)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        logged = values(monitor, "weight_grad.norm")
    expected = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert logged == pytest.approx(expected, rel=1e-6)


def test_lbfgs_evaluates_its_closure_often_and_one_frame_comes_of_it() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    with gradlab.watch(model, optimizer, taps=[*ALL_GRADIENTS, Tap("*", of="update")], strict=True) as monitor:

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(batch(3)).square().sum()
            loss.backward()
            return loss

        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(closure)
        assert monitor.step == 1
        update = values(monitor, "update.norm")
    for (name, p), old in zip(model.named_parameters(), before, strict=True):
        assert update[name] == pytest.approx((p.detach() - old).norm().item(), rel=1e-5)


def test_autograd_grad_probes_do_not_pollute() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS, strict=True) as monitor:
        x = batch(4)
        out = model(x)
        torch.autograd.grad(out.sum() * 100, list(model.parameters()), retain_graph=True)
        loss = out.square().sum()
        loss.backward(retain_graph=True)
        torch.autograd.grad(out.sum() * 100, list(model.parameters()))
        with torch.no_grad():
            model(x * 50)
        optimizer.step()
        assert values(monitor, "output_grad.norm")["output"] == pytest.approx((2 * out).norm().item(), rel=1e-6)


def test_a_gradient_penalty_counts_the_backward_that_accumulates() -> None:
    model = mlp()
    optimizer = sgd(model)
    x = batch(5).requires_grad_()
    with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS, strict=True) as monitor:
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (out.square().sum() + slope.square().sum()).backward()
        optimizer.step()
        gradients, weights = values(monitor, "output_grad.norm"), values(monitor, "weight_grad.norm")
    assert weights == pytest.approx({n: p.grad.norm().item() for n, p in model.named_parameters()}, rel=1e-6)
    assert gradients["output"] > 0


def test_evaluation_between_steps_is_not_recorded() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="output")], strict=True) as monitor:
        model(batch(1)).sum().backward()
        with torch.inference_mode():
            model(batch(1) * 1000)
        model(batch(1) * 1000)  # with gradients on, but no backward follows
        optimizer.step()
        norm = monitor.latest()["output.norm"]["0"]
    assert norm < 100


def test_two_optimizers_that_step_together_make_one_frame() -> None:
    model = mlp()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.1)]
    with gradlab.watch(model, optimizers, strict=True) as monitor:
        for _ in range(3):
            model.zero_grad()
            model(batch(1)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        assert monitor.step == 3
        assert not is_absent(monitor.latest()["weight_grad.norm"].array).any()


def test_optimizers_are_found_where_none_is_named() -> None:
    model, other = mlp(), mlp()
    with gradlab.watch(model, strict=True) as monitor:
        for one in (other, model):
            optimizer = sgd(one)
            one(batch(1)).sum().backward()
            optimizer.step()
        assert monitor.step == 1


def test_a_part_of_the_model_called_by_itself_is_recorded() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[*ALL_GRADIENTS, Tap("*", of="output")], strict=True) as monitor:
        out = model[2](model[1](model[0](batch(1))))
        out.square().sum().backward()
        optimizer.step()
        assert monitor.latest()["output.norm"]["2"] == pytest.approx(out.norm().item(), rel=1e-6)
        assert monitor.latest()["output_grad.norm"]["2"] == pytest.approx(2 * out.norm().item(), rel=1e-6)
        assert not is_absent(monitor.latest()["weight_grad.norm"].array).any()


def test_gradients_before_clipping_are_read_though_the_model_is_never_called_as_a_whole() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            model[2](model[1](model[0](batch(1)))).square().sum().backward()
            total = nn.utils.clip_grad_norm_(model.parameters(), 0.01).item()
            optimizer.step()
            logged = values(monitor, "weight_grad.norm")
            assert np.sqrt(sum(v**2 for v in logged.values())) == pytest.approx(total, rel=1e-5)


def test_kept_tensors_have_their_gradient_as_retain_grad_gives_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return gradlab.tap("z", F.relu(self.fc(x)))

    model = Net().double()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap(["/relu", "z"], of="output_grad", keep=True)]) as monitor:
        out = model(batch(1))
        with pytest.raises(TapError, match=r"no kept tensor at '/rlu'\. Did you mean '/relu'\?"):
            monitor.grad("/rlu")
        assert monitor.grad("z") is None
        out.square().sum().backward()
        assert torch.equal(monitor.grad("z"), 2 * out)
        assert monitor.tensor("/relu") is out
        assert torch.equal(monitor.grad("fc.weight"), model.fc.weight.grad)


def test_rules_due_on_different_steps_give_their_own_metrics() -> None:
    model = mlp()
    optimizer = sgd(model)
    frames: list[Frame] = []

    class Keep:
        name = "keep"

        def frame(self, frame: Frame) -> None:
            frames.append(frame)

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    taps = [Tap("*", of="weight_grad"), Tap("0", of="output", every=2)]
    with gradlab.watch(model, optimizer, taps=taps, sinks=[Keep()], strict=True):
        for step in range(4):
            model(batch(step)).sum().backward()
            optimizer.step()
    assert [sorted(f) for f in frames] == [["output.norm", "weight_grad.norm"], ["weight_grad.norm"]] * 2
    assert [f.step for f in frames] == [0, 1, 2, 3]


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    model = mlp()
    with pytest.raises(TapError, match=r"no tensor matches '0\.wieght'\. Did you mean '0\.weight'"):
        gradlab.watch(model, sgd(model), taps=[Tap("0.wieght", of="weight_grad")])
    with gradlab.watch(model, optimizer := sgd(model), taps=[Tap(["0", "nowhere"], of="output")]):
        with pytest.warns(GradlabWarning, match="no tensor matches 'nowhere'"):
            model(batch(1)).sum().backward()
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(batch(1)).sum().backward()
            optimizer.step()


def test_a_tap_on_a_module_that_is_never_called_says_so() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.used(x), self.idle.weight)

    model = Net()
    optimizer = sgd(model)
    with (
        gradlab.watch(model, optimizer, taps=[Tap(["used", "idle"], of="output")]) as monitor,
        pytest.warns(GradlabWarning, match="'idle' matches the module idle, which was not called in that step"),
    ):
        model(batch(1).float()).sum().backward()
        optimizer.step()
        assert monitor.sites() == ["used", "used.weight", "used.bias", "idle.weight", "idle.bias"]


def test_a_stage_that_a_quantity_does_not_have_is_refused() -> None:
    with pytest.raises(TapError, match=r"Tap\('\*'\): stage clipped is of weight_grad only\."):
        Tap("*", of=["output_grad", "weight_grad"], stage="clipped")


@pytest.mark.parametrize(
    "options, says",
    [
        ({"of": "weight_grad"}, "per_rank of weight_grad needs stage='micro'; at stage final ranks have been reduced"),
        ({"of": ["output", "update"]}, "per_rank is not for update, which is the same on every rank"),
        ({"of": "output", "stats": "zeros"}, "per_rank logs norms; add 'norm' to its stats"),
    ],
)
def test_per_rank_is_refused_where_ranks_do_not_differ(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TapError, match=rf"Tap\('\*'\): {says}"):
        Tap("*", per_rank=True, **options)


def test_per_rank_adds_nothing_in_one_process() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="output", per_rank=True)], across_ranks=True) as monitor:
        model(batch(1)).square().sum().backward()
        optimizer.step()
        assert monitor.latest().keys() == {"output.norm"}


def test_watching_twice_ends_the_first_monitor_and_says_so() -> None:
    model = mlp()
    optimizer = sgd(model)
    first = gradlab.watch(model, optimizer)
    with pytest.warns(GradlabWarning, match="this model was watched already: its earlier monitor has been closed"):
        second = gradlab.watch(model, optimizer)
    model(batch(1)).square().sum().backward()
    optimizer.step()
    assert first.is_closed and (first.step, second.step) == (0, 1)
    second.close()
    gradlab.watch(model, optimizer).close()


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(TapError, match=r"the optimizer SGD owns none of the model's parameters\."):
        gradlab.watch(mlp(), sgd(mlp()))


def test_a_tap_on_integers_is_switched_off_with_one_warning_and_training_goes_on() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counts, self.table = Counts(), nn.Embedding(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(self.counts(x))

    model = Net()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[Tap("*", of="output")]) as monitor:
        with pytest.warns(GradlabWarning, match=r"the tap at 'counts' was switched off: its tensor is torch\.int64"):
            model(batch(1)).sum().backward()
            optimizer.step()
        model(batch(1)).sum().backward()
        optimizer.step()
        assert "table" in values(monitor, "output.norm")
    with (
        gradlab.watch(model, optimizer, taps=[Tap("*", of="output")], strict=True),
        pytest.raises(TapError, match="the tap at 'counts' failed"),
    ):
        model(batch(1))


def test_a_sink_that_raises_is_dropped_with_one_warning() -> None:
    class Broken:
        name = "broken"

        def __getattr__(self, name: str) -> Any:
            def fail(*args: Any, **kwargs: Any) -> None:
                raise OSError("no space left on device")

            return fail

    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, sinks=[Broken()]) as monitor:
        with pytest.warns(GradlabWarning, match="the sink 'broken' was switched off: no space left on device"):
            model(batch(1)).sum().backward()
            optimizer.step()
        model(batch(1)).sum().backward()
        optimizer.step()
        assert monitor.step == 2


def test_a_backward_that_raises_is_followed_by_a_right_step() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS, strict=True) as monitor:
        out = model(batch(1))
        out.register_hook(lambda g: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            out.sum().backward()
        optimizer.zero_grad()
        out = model(batch(1))
        out.square().sum().backward()
        optimizer.step()
        assert values(monitor, "output_grad.norm")["output"] == pytest.approx(2 * out.norm().item(), rel=1e-6)


def test_an_interrupt_in_a_forward_costs_no_more_than_that_step() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS, strict=True) as monitor:

        def interrupt(module: nn.Module, args: Any) -> None:
            raise KeyboardInterrupt

        handle = model[2].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(batch(1))
        handle.remove()
        for _ in range(2):
            optimizer.zero_grad()
            out = model(batch(1))
            out.square().sum().backward()
            optimizer.step()
        assert values(monitor, "output_grad.norm")["output"] == pytest.approx(2 * out.norm().item(), rel=1e-6)
        assert not is_absent(monitor.latest()["weight_grad.norm"].array).any()


def test_jacobians_replayed_between_steps_disturb_no_number() -> None:
    def train(jacobians: list[gradlab.JacobianSlice]) -> list[np.ndarray]:
        torch.manual_seed(0)
        model = mlp()
        optimizer = sgd(model)
        with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS, jacobians=jacobians, strict=True) as monitor:
            for step in range(4):
                optimizer.zero_grad()
                model(batch(step)).square().sum().backward()
                optimizer.step()
            return [monitor.history("weight_grad.norm", "0.weight"), monitor.history("output_grad.norm", "1")]

    bare, probed = train([]), train([gradlab.JacobianSlice(of="1", wrt="0", every=1)])
    for one, other in zip(bare, probed, strict=True):
        assert np.array_equal(one, other) and len(one[0]) == 4


def test_a_jacobian_that_cannot_be_computed_is_switched_off_and_training_goes_on() -> None:
    model = mlp()
    optimizer = sgd(model)
    slices = [gradlab.JacobianSlice(of="output", wrt="input", samples=100, every=1)]
    with gradlab.watch(model, optimizer, jacobians=slices) as monitor:
        with pytest.warns(GradlabWarning, match="the Jacobian of 'output' by 'input' was switched off"):
            model(batch(1)).sum().backward()
            optimizer.step()
        model(batch(1)).sum().backward()
        optimizer.step()
        assert monitor.step == 2


def test_history_gives_steps_and_values_and_names_near_misses() -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer) as monitor:
        for step in range(3):
            model(batch(step)).sum().backward()
            optimizer.step()
        steps, logged = monitor.history("weight_grad.norm", "0.weight")
        assert steps.tolist() == [0, 1, 2] and (logged > 0).all()
        with pytest.raises(KeyError, match=r"Did you mean '0\.weight'"):
            monitor.history("weight_grad.norm", "0.wieght")


def test_a_non_finite_gradient_is_a_finding_at_the_site_nearest_the_loss() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c((self.b(self.a(x)) * 0).sqrt())

    model = Net()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=ALL_GRADIENTS) as monitor:
        model(batch(1).float()).sum().backward()
        optimizer.step()
        found = [f for f in monitor.findings if f.kind == "nonfinite" and "output_grad.norm" in f.evidence]
    assert [f.site for f in found] == ["/mul"]
    assert "that of /sqrt, nearer the loss, is finite" in found[0].message and found[0].step == 0


class Twice(torch.optim.SGD):
    """An optimizer of the user's whose step calls that of its base class."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_optimizer_that_calls_its_base_class_steps_once(with_closure: bool) -> None:
    plain = nn.Linear(4, 2)
    torch.optim.SGD(plain.parameters(), lr=0.1)  # torch puts hooks on a class when it first makes one
    model = nn.Linear(4, 2)
    optimizer = Twice(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch(1).float()).sum()
        loss.backward()
        return loss

    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for _ in range(3):
            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        assert monitor.step == 3
        assert list(monitor.history("weight_grad.norm", "weight")[0]) == [0, 1, 2]


def test_a_step_that_raised_is_followed_by_steps_that_count() -> None:
    model = nn.Linear(4, 2)
    optimizer = sgd(model)

    def failing() -> float:
        raise ArithmeticError

    with gradlab.watch(model, optimizer, strict=True) as monitor:
        with pytest.raises(ArithmeticError):
            optimizer.step(failing)
        for _ in range(2):
            model(batch(1).float()).sum().backward()
            optimizer.step()
        assert monitor.step == 2


def test_a_copy_of_a_model_whose_jacobians_are_watched_is_a_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    jacobians = [gradlab.JacobianSlice(of="output", wrt="input", rows=1)]
    with gradlab.watch(model, sgd(model), jacobians=jacobians):
        twin = copy.deepcopy(model)
        before = len(twin._forward_pre_hooks)
        twin(batch(1).float())
    assert [type(hook).__module__ for hook in twin._forward_pre_hooks.values()] == ["builtins"] * before


def test_two_optimizers_that_nobody_has_named_share_their_steps_from_the_second_round_on() -> None:
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    both = nn.ModuleDict({"first": first, "second": second})
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (second, first)]
    truth, sink = [], MemorySink()
    with gradlab.watch(both, taps=[Tap("*", of=["weight_grad", "output_grad"])], sinks=[sink], strict=True):
        for number in range(4):
            now = {}
            for optimizer, net in zip(optimizers, (second, first), strict=True):
                optimizer.zero_grad()
                x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
                second(first(x)).square().mean().backward()
                now |= {id(p): p.grad.norm().item() for p in net.parameters()}
                optimizer.step()
            truth.append({name: now[id(p)] for name, p in both.named_parameters()})
    assert len(sink.frames) == 5  # the first round is two frames: one before the second optimizer was known
    for frame, norms in zip(list(sink.frames)[2:], truth[1:], strict=True):
        assert dict(frame["weight_grad.norm"].items()) == pytest.approx(norms)
        assert {"first", "second"} <= set(frame["output_grad.norm"].schema.sites)


def test_a_warning_points_to_the_line_of_the_script_that_led_to_it() -> None:
    """However deep in gradlab and torch it is given: on creation, in a backward, at an optimizer's step."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    model.frozen = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    optimizer = torch.optim.SGD([*model[0].parameters()], lr=0.1)

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("broken")

    with pytest.warns(gradlab.GradlabWarning) as caught:
        taps = [gradlab.Tap("*", of="weight"), gradlab.Tap("1", of="output_grad", stats=[broken])]
        with gradlab.watch(model, optimizer, taps=taps):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    assert len(caught) >= 2
    assert {Path(one.filename) for one in caught} == {Path(__file__)}
