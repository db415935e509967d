"""Which optimizers' steps are counted and measured: wrapped, late, replaced, of another kind, none at all."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning, TapError
from gradlab.frame import is_absent
from gradlab.sinks import MemorySink

TAPS = [Tap("*", of="weight_grad", stage=["final", "clipped"]), Tap("*", of=["weight", "update"])]
NUM_STEPS = 4


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def loss(model: nn.Module, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return model(torch.randn(5, 4, generator=generator, dtype=torch.float64)).square().mean()


@dataclass
class Loop:
    """One way to train: what is given to `watch`, and an iteration that tells when its gradients are complete."""

    given: Any
    iterate: Callable[[int, Callable[[], None]], None]
    num_steps: int = NUM_STEPS
    keep: Any = None


def plain(model: nn.Module, optimizer: Any, given: Any = "it", step: Callable[[], Any] | None = None) -> Loop:
    """zero_grad, backward, step."""

    def iterate(number: int, used: Callable[[], None]) -> None:
        model.zero_grad()
        loss(model, number).backward()
        used()
        (step or optimizer.step)()

    return Loop(optimizer if given == "it" else given, iterate, keep=optimizer)


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021), as it is mostly written: its own `step` may never be called."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05) -> None:
        super().__init__(params, {"rho": rho})
        self.base_optimizer = base(self.param_groups, lr=0.1)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            norm = torch.stack([p.grad.norm() for p in group["params"]]).norm()
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad, alpha=0.05 / float(norm))
                p.grad = None

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


def sam_by_parts(model: nn.Module) -> Loop:
    sam = Sam(model.parameters(), torch.optim.SGD)

    def iterate(number: int, used: Callable[[], None]) -> None:
        model.zero_grad()
        loss(model, number).backward()
        sam.first_step()
        loss(model, number).backward()
        used()
        sam.second_step()

    return Loop(sam, iterate)


def sam_with_closure(model: nn.Module) -> Loop:
    sam = Sam(model.parameters(), torch.optim.SGD)

    def iterate(number: int, used: Callable[[], None]) -> None:
        model.zero_grad()
        loss(model, number).backward()

        def closure() -> None:
            loss(model, number).backward()
            used()

        sam.step(closure)

    return Loop(sam, iterate)


def sam_given_by_its_base(model: nn.Module) -> Loop:
    loop = sam_with_closure(model)
    loop.keep, loop.given = loop.given, loop.given.base_optimizer
    return loop


def sam_not_given(model: nn.Module) -> Loop:
    loop = sam_by_parts(model)
    loop.keep, loop.given = loop.given, None
    return loop


class Lookahead(torch.optim.Optimizer):
    """Lookahead (Zhang et al. 2019): every second step goes half of the way back. As published, without `super()`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        self.calls = 0
        for p in optimizer.param_groups[0]["params"]:
            self.state[p]["slow"] = p.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        result = self.optimizer.step(closure)
        self.calls += 1
        if self.calls % 2 == 0:
            for p in self.param_groups[0]["params"]:
                slow = self.state[p]["slow"]
                slow += 0.5 * (p - slow)
                p.copy_(slow)
        return result


class ProperLookahead(Lookahead):
    """The same one, made as an optimizer of torch."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        torch.optim.Optimizer.__init__(self, optimizer.param_groups, {})
        Lookahead.__init__(self, optimizer)


class Noisy(torch.optim.Optimizer):
    """In the shape of opacus' DPOptimizer: steps every second time, by the optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.original_optimizer = optimizer
        self.calls = 0

    @property
    def param_groups(self) -> Any:
        return self.original_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        self.original_optimizer.param_groups = value

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return self.original_optimizer.step() if self.calls % 2 == 0 else None


def noisy(model: nn.Module) -> Loop:
    optimizer = Noisy(sgd(model))

    def iterate(number: int, used: Callable[[], None]) -> None:
        model.zero_grad()
        for part in range(2):
            loss(model, 2 * number + part).backward()
            if part:
                used()
            optimizer.step()

    return Loop(optimizer, iterate)


class Fused:
    """In the shape of apex' and DeepSpeed's optimizers: no version counter notices their kernels."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        self.param_groups = [{"params": list(params), "lr": lr}]

    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.sub_(p.grad.data, alpha=self.param_groups[0]["lr"])


class WithoutGroups:
    """In the shape of fastai's and Keras': lists of its own, and steps on `.data`."""

    def __init__(self, params: Any) -> None:
        self.param_lists = [list(params)]

    def step(self) -> None:
        for p in self.param_lists[0]:
            p.data.add_(p.grad.data, alpha=-0.1)


class Slotted:
    """Nothing can be put on it."""

    __slots__ = ("parameters",)

    def __init__(self, params: Any) -> None:
        self.parameters = list(params)

    def step(self) -> None:
        WithoutGroups(self.parameters).step()


def step_of_the_instance(model: nn.Module) -> Loop:
    optimizer = sgd(model)

    def step(self: Any, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.data -= 0.2 * p.grad

    optimizer.step = types.MethodType(step, optimizer)
    return plain(model, optimizer)


def scheduled(model: nn.Module) -> Loop:
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return plain(model, optimizer, step=step)


class CopiedMark(torch.optim.SGD):
    """Its `step` is decorated with `functools.wraps`, which copies torch's own mark that hooks are run."""

    @functools.wraps(torch.optim.SGD.step)
    def step(self, closure: Any = None) -> Any:
        return torch.optim.SGD.step.__wrapped__(self, closure)


def copied_mark(model: nn.Module) -> Loop:
    return plain(model, CopiedMark(model.parameters(), lr=0.1))


class Several:
    """One optimizer a part behind one `step`, as combinations of Muon and Adam are made."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = list(optimizers)

    def step(self) -> None:
        for one in self.optimizers:
            one.step()


def several(model: nn.Module) -> Loop:
    return plain(model, Several(sgd(model[0]), torch.optim.Adam(model[2].parameters(), 0.1)))


def several_in_a_list(model: nn.Module) -> Loop:
    both = [sgd(model[0]), torch.optim.Adam(model[2].parameters(), 0.1)]
    return plain(model, both, step=lambda: [one.step() for one in both])


def replaced(given: bool) -> Callable[[nn.Module], Loop]:
    def make(model: nn.Module) -> Loop:
        optimizers = [sgd(model)]

        def iterate(number: int, used: Callable[[], None]) -> None:
            if number == 2:
                optimizers.append(torch.optim.Adam(model.parameters(), 0.1))
            model.zero_grad()
            loss(model, number).backward()
            used()
            optimizers[-1].step()

        return Loop(optimizers[0] if given else None, iterate, keep=optimizers)

    return make


def taking_turns(model: nn.Module) -> Loop:
    """Two optimizers of the same parameters, of which nobody has named one, and the other is used now and then."""
    optimizers = [sgd(model), torch.optim.Adam(model.parameters(), 0.1)]

    def iterate(number: int, used: Callable[[], None]) -> None:
        model.zero_grad()
        loss(model, number).backward()
        used()
        optimizers[number % 2].step()

    return Loop(optimizers[0], iterate, keep=optimizers)


def unfrozen(model: nn.Module) -> Loop:
    """A part that is trained later by an optimizer of its own."""
    model[0].requires_grad_(False)
    optimizers = [sgd(model[2])]

    def iterate(number: int, used: Callable[[], None]) -> None:
        if number == 2:
            model[0].requires_grad_(True)
            optimizers[0].add_param_group({"params": list(model[0].parameters())})
        model.zero_grad()
        loss(model, number).backward()
        used()
        optimizers[0].step()

    return Loop(optimizers[0], iterate)


def lbfgs(model: nn.Module) -> Loop:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)

    def iterate(number: int, used: Callable[[], None]) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(model, number)
            value.backward()
            used()
            return value

        optimizer.step(closure)

    return Loop(optimizer, iterate)


def copied(how: Callable[[Any], Any]) -> Callable[[nn.Module], Loop]:
    """An optimizer that comes, with its model, out of a copy or a pickle."""

    def make(model: nn.Module) -> Loop:
        twin, optimizer = how((model, sgd(model)))
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.data = other.data
        optimizer.param_groups[0]["params"] = list(model.parameters())
        return plain(model, optimizer)

    return make


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): `train()` and `eval()` swap the weights between steps."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.calls += 1
        for p in self.param_groups[0]["params"]:
            z = self.state[p].setdefault("z", p.clone())
            p.lerp_(z, 1 / self.calls)
            p.add_(p.grad, alpha=-0.01)
            z.sub_(p.grad, alpha=0.1)


KINDS: dict[str, Callable[[nn.Module], Loop]] = {
    "sam_by_parts": sam_by_parts,
    "sam_with_closure": sam_with_closure,
    "sam_given_by_its_base": sam_given_by_its_base,
    "sam_not_given": sam_not_given,
    "lookahead": lambda m: plain(m, Lookahead(sgd(m))),
    "lookahead_not_given": lambda m: plain(m, ProperLookahead(sgd(m)), given=None),
    "proper_lookahead": lambda m: plain(m, ProperLookahead(sgd(m))),
    "proper_lookahead_and_its_base": lambda m: (lambda o: plain(m, o, given=[o, o.optimizer]))(ProperLookahead(sgd(m))),
    "noisy": noisy,
    "fused": lambda m: plain(m, Fused(m.parameters())),
    "without_groups": lambda m: plain(m, WithoutGroups(m.parameters())),
    "step_of_the_instance": step_of_the_instance,
    "scheduled": scheduled,
    "copied_mark": copied_mark,
    "several": several,
    "several_in_a_list": several_in_a_list,
    "replaced": replaced(given=True),
    "replaced_not_given": replaced(given=False),
    "taking_turns": taking_turns,
    "unfrozen": unfrozen,
    "lbfgs": lbfgs,
    "deepcopied": copied(copy.deepcopy),
    "unpickled": copied(lambda both: pickle.loads(pickle.dumps(both))),
    "schedule_free": lambda m: plain(m, ScheduleFree(m.parameters())),
}


@dataclass
class Run:
    """What a loop has done, step by step."""

    grads: list[dict[str, float]] = field(default_factory=list)
    before: list[dict[str, Tensor]] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)


def run(model: nn.Module, loop: Loop) -> Run:
    done = Run()
    for number in range(loop.num_steps):
        now: dict[str, float] = {}

        def used(now: dict[str, float] = now) -> None:
            now |= {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}

        done.before.append({name: p.detach().clone() for name, p in model.named_parameters()})
        loop.iterate(number, used)
        done.after.append({name: p.detach().clone() for name, p in model.named_parameters()})
        done.grads.append(now)
    return done


def check(frames: list[Any], truth: Run, *, with_clipped: bool = True) -> None:
    assert [frame.step for frame in frames] == list(range(len(truth.grads)))
    for number, frame in enumerate(frames):
        before, after = truth.before[number], truth.after[number]
        for metric in ["weight_grad.norm", "weight_grad.norm@clipped"][: 1 + with_clipped]:
            series = frame[metric]
            there = {site: v for (site, v), no in zip(series.items(), is_absent(series.array), strict=True) if not no}
            assert there == pytest.approx(truth.grads[number], rel=1e-6)
        weights = {name: p.norm().item() for name, p in before.items()}
        assert dict(frame["weight.norm"].items()) == pytest.approx(weights, rel=1e-6)
        updates = {name: (after[name] - p).norm().item() for name, p in before.items()}
        assert dict(frame["update.norm"].items()) == pytest.approx(updates, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_counted_once_and_measured_as_a_whole(kind: str) -> None:
    bare_model, model = mlp(), mlp()
    truth = run(bare_model, KINDS[kind](bare_model))
    loop, sink = KINDS[kind](model), MemorySink()
    with gradlab.watch(model, loop.given, taps=TAPS, sinks=[sink], strict=True) as monitor:
        watched = run(model, loop)
        assert monitor.step == loop.num_steps
    for one, other in zip(truth.after, watched.after, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    check(list(sink.frames), truth)


def by_hand(model: nn.Module, monitor: gradlab.Monitor | None, number: int, *, data: bool) -> None:
    """An iteration of a loop without any optimizer."""
    model.zero_grad()
    loss(model, number).backward()
    with torch.no_grad(), monitor.stepping() if monitor is not None else contextlib.nullcontext():
        for p in model.parameters():
            assert p.grad is not None
            (p.data if data else p).sub_(p.grad, alpha=0.1)


@pytest.mark.parametrize("data", [False, True])
def test_what_runs_in_stepping_is_a_step(data: bool) -> None:
    def loop(model: nn.Module, monitor: gradlab.Monitor | None) -> Loop:
        def iterate(number: int, used: Callable[[], None]) -> None:
            by_hand(model, monitor, number, data=data)
            used()

        return Loop(None, iterate)

    bare_model, model, sink = mlp(), mlp(), MemorySink()
    truth = run(bare_model, loop(bare_model, None))
    with gradlab.watch(model, taps=TAPS, sinks=[sink], strict=True) as monitor:
        run(model, loop(model, monitor))
        assert monitor.step == NUM_STEPS
    check(list(sink.frames), truth)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bare_model.parameters(), strict=True))


def test_an_optimizer_within_stepping_is_a_part_of_the_one_step() -> None:
    model = mlp()
    optimizers = [sgd(model), sgd(model[0])]
    with gradlab.watch(model, optimizers, taps=TAPS, strict=True) as monitor:
        for number in range(3):
            loss(model, number).backward()
            before = model[0].weight.detach().clone()
            with monitor.stepping():
                for one in optimizers:
                    one.step()
            assert monitor.step == number + 1
            change = (model[0].weight.detach() - before).norm().item()
            assert monitor.latest()["update.norm"]["0.weight"] == pytest.approx(change, rel=1e-6)


def test_stepping_that_raises_is_no_step_and_stepping_after_close_does_nothing() -> None:
    model = mlp()
    with gradlab.watch(model, taps=TAPS, strict=True) as monitor:
        loss(model, 0).backward()
        with pytest.raises(ArithmeticError), monitor.stepping():
            raise ArithmeticError
        assert monitor.step == 0
        with monitor.stepping():
            sgd(model).step()
        assert monitor.step == 1
    with monitor.stepping():
        pass
    assert monitor.step == 1


REMEDY = "Put the update into `with monitor.stepping():` of the monitor that gradlab.watch gives, and it is counted."


def said(loop: Callable[[gradlab.Monitor], None], model: nn.Module, given: Any = None) -> list[str]:
    """What a loop is told, of which no step is counted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradlab.watch(model, given, strict=True) as monitor:
            loop(monitor)
    return [str(one.message) for one in caught if one.category is GradlabWarning]


@pytest.mark.parametrize("num_backwards", [5, 150])
@pytest.mark.parametrize("data", [False, True])
def test_a_loop_without_an_optimizer_is_told_how_to_have_its_steps_counted(num_backwards: int, data: bool) -> None:
    model = mlp()
    lines = said(lambda _: [by_hand(model, None, number, data=data) for number in range(num_backwards)], model)
    assert lines == [
        f"gradlab: {min(num_backwards, 100)} backward passes have ended without a step to count: no optimizer of "
        f"torch.optim that owns the model's parameters has stepped. {REMEDY}"
    ]


def test_an_object_whose_step_cannot_be_seen_is_named() -> None:
    model = mlp()
    optimizer = Slotted(model.parameters())
    lines = said(
        lambda _: [plain(model, optimizer).iterate(number, lambda: None) for number in range(5)], model, optimizer
    )
    assert lines == [
        "gradlab: 5 backward passes have ended without a step to count: Slotted, which was given, has not been seen to "
        "step. " + REMEDY
    ]


def test_an_optimizer_that_steps_copies_of_the_parameters_is_named() -> None:
    model = mlp()
    masters = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(masters, 0.1)

    def loop(_: gradlab.Monitor) -> None:
        for number in range(4):
            model.zero_grad()
            loss(model, number).backward()
            for master, p in zip(masters, model.parameters(), strict=True):
                master.grad = p.grad
            optimizer.step()
            for master, p in zip(masters, model.parameters(), strict=True):
                p.data.copy_(master)

    assert said(loop, model) == [
        f"gradlab: 4 backward passes have ended without a step to count: no optimizer of torch.optim that owns the "
        f"model's parameters has stepped, SGD has stepped, which owns none of the model's parameters. {REMEDY}"
    ]
    with pytest.raises(TapError, match=r"SGD owns none of .* leave it out and put the update into `with monitor.stepp"):
        gradlab.watch(model, optimizer)


class Lomo(torch.optim.Optimizer):
    """In the shape of LOMO: hooks on gradients update the parameters, whose gradients are gone when a backward ends."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})
        self.model = model
        for p in model.parameters():
            p.register_hook(self._update)

    def _update(self, grad: Any) -> Any:
        with torch.no_grad():
            for p in self.model.parameters():
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-0.1)
                    p.grad = None
        return grad

    def fused_backward(self, value: Tensor) -> None:
        value.backward()
        self._update(None)

    def step(self, closure: Any = None) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("num_backwards", [10, 120])
def test_hooks_that_update_in_the_backward_are_told_of(given: bool, num_backwards: int) -> None:
    model = mlp()
    lomo = Lomo(model)

    def loop(_: gradlab.Monitor) -> None:
        for number in range(num_backwards):
            lomo.fused_backward(loss(model, number))

    who = (
        "Lomo, which was given, has not been seen to step"
        if given
        else ("no optimizer of torch.optim that owns the model's parameters has stepped")
    )
    assert said(loop, model, lomo if given else None) == [
        f"gradlab: {min(num_backwards, 100)} backward passes have ended without a step to count: {who}. {REMEDY}"
    ]


def test_a_step_that_has_nothing_left_to_do_is_told_of() -> None:
    model = mlp()

    class Idle(Lomo):
        def step(self, closure: Any = None) -> None:
            pass

    lomo = Idle(model)

    def loop(_: gradlab.Monitor) -> None:
        for number in range(10):
            lomo.fused_backward(loss(model, number))
            lomo.step()

    assert said(loop, model, lomo) == [
        "gradlab: 10 backward passes have ended without a step to count: Idle has stepped, and has found no gradient "
        "to use. " + REMEDY
    ]


class Dummy(torch.optim.Optimizer):
    """In the shape of the Trainer's LayerWiseDummyOptimizer, which stands for those that step in the backward."""

    def __init__(self, optimizers: dict[Any, torch.optim.Optimizer]) -> None:
        self.optimizer_dict = optimizers
        super().__init__([torch.randn(1, 1)], {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        pass


@pytest.mark.parametrize("given", [False, True])
def test_a_dummy_stands_for_the_optimizers_inside_of_it(given: bool) -> None:
    model, twin = mlp(), mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    dummy = Dummy(optimizers)
    taps = [Tap("*", of=["weight_grad", "update"])]
    with gradlab.watch(model, dummy if given else None, taps=taps, strict=True) as monitor:
        for number in range(3):
            loss(model, number).backward()
            dummy.step()
            twin.zero_grad()
            loss(twin, number).backward()
            norms = [p.grad.norm().item() for p in twin.parameters() if p.grad is not None]
            assert list(monitor.latest()["weight_grad.norm"].values()) == pytest.approx(norms, rel=1e-6)
            with torch.no_grad():
                for p in twin.parameters():
                    p -= 0.1 * p.grad  # type: ignore[operator]
            assert monitor.step == number + 1


def test_hooks_that_update_in_the_backward_are_measured_within_stepping() -> None:
    model, twin = mlp(), mlp()
    lomo, plain_lomo, sink = Lomo(model), Lomo(twin), MemorySink()
    with gradlab.watch(model, lomo, taps=[Tap("*", of=["update", "weight"])], sinks=[sink], strict=True) as monitor:
        for number in range(3):
            value = loss(model, number)
            with monitor.stepping():
                lomo.fused_backward(value)
            before = [p.detach().clone() for p in twin.parameters()]
            plain_lomo.fused_backward(loss(twin, number))
            changes = [(p - q).norm().item() for p, q in zip(twin.parameters(), before, strict=True)]
            assert list(monitor.latest()["update.norm"].values()) == pytest.approx(changes, rel=1e-6)
    assert len(sink.frames) == 3
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_gradients_that_are_accumulated_or_only_looked_at_are_no_reason_to_speak() -> None:
    model = mlp()
    assert said(lambda _: [loss(model, number).backward() for number in range(150)], model, sgd(model)) == []

    def probes(_: gradlab.Monitor) -> None:
        for number in range(150):
            torch.autograd.grad(loss(model, number), list(model.parameters()))

    assert said(probes, model) == []


def test_an_optimizer_that_was_left_out_on_purpose_is_not_counted() -> None:
    model = mlp()
    mine, other = sgd(model[0]), sgd(model[2])
    with gradlab.watch(model, mine, strict=True) as monitor:
        for number in range(4):
            model.zero_grad()
            loss(model, number).backward()
            other.step()
            if number % 2:
                mine.step()
        assert monitor.step == 2
        assert monitor.optimizers == (mine,)


def test_an_optimizer_of_what_is_trained_later_joins_those_that_were_given() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    first = sgd(model[2])
    with gradlab.watch(model, first, taps=TAPS, strict=True) as monitor:
        loss(model, 0).backward()
        first.step()
        model[0].requires_grad_(True)
        second = sgd(model[0])
        for number in range(1, 4):
            model.zero_grad()
            loss(model, number).backward()
            before = [p.detach().clone() for p in model.parameters()]
            first.step()
            second.step()
            changes = [(p - q).norm().item() for p, q in zip(model.parameters(), before, strict=True)]
        assert set(monitor.optimizers) == {first, second}
        assert list(monitor.latest()["update.norm"].values()) == pytest.approx(changes, rel=1e-6)
        assert monitor.step == 1 + 1 + 3  # the second was not known before its first step: that round is two


@pytest.mark.parametrize("given", [False, True])
def test_optimizers_that_torch_puts_into_the_backward_are_followed(given: bool) -> None:
    with warnings.catch_warnings():  # its package scripts functions when it is imported
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

    model, twin, sink = mlp(), mlp(), MemorySink()
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    optimizers = _get_in_backward_optimizers(model) if given else None
    taps = [Tap("*", of=["weight_grad", "update"])]
    with gradlab.watch(model, optimizers, taps=taps, sinks=[sink], strict=True) as monitor:
        for number in range(3):
            loss(model, number).backward()
            grads = torch.autograd.grad(loss(twin, number), list(twin.parameters()))
            norms = [g.norm().item() for g in grads]
            assert monitor.step == number + 1
            assert list(monitor.latest()["weight_grad.norm"].values()) == pytest.approx(norms, rel=1e-6)
            assert list(monitor.latest()["update.norm"].values()) == pytest.approx([0.1 * n for n in norms], rel=1e-6)
            with torch.no_grad():
                for p, g in zip(twin.parameters(), grads, strict=True):
                    p -= 0.1 * g
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


class StepsInForward(nn.Module):
    """A model that trains a part of itself whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.optimizer = sgd(self.net)

    def forward(self, number: int) -> Tensor:
        self.optimizer.zero_grad()
        value = loss(self.net, number)
        value.backward()
        self.optimizer.step()
        return self.net[0].weight.relu().sum()


def test_an_optimizer_inside_the_forward_shows_no_op_of_ours_as_a_site() -> None:
    model, sink = StepsInForward(), MemorySink()
    taps = [*TAPS, Tap("*", of="output")]
    with gradlab.watch(model, model.optimizer, taps=taps, sinks=[sink], strict=True) as monitor:
        for number in range(3):
            before = model.net[0].weight.detach().clone()
            model(number)
            change = (model.net[0].weight.detach() - before).norm().item()
            assert monitor.latest()["update.norm"]["net.0.weight"] == pytest.approx(change, rel=1e-6)
        assert monitor.step == 3
        assert not [
            site for site in monitor.sites() if "norm" in site or "copy" in site or "sub" in site or "clone" in site
        ]


def test_nothing_is_left_on_any_optimizer() -> None:
    from torch.optim import optimizer as registry

    model = mlp()
    odd = Fused(model.parameters())
    own = step_of_the_instance(model).given
    method = vars(own)["step"]
    hooks = [registry._global_optimizer_pre_hooks, registry._global_optimizer_post_hooks]
    before = [dict(one) for one in hooks]
    for given in (None, sgd(model), odd, own):
        gradlab.watch(model, given).close()
        assert [dict(one) for one in hooks] == before
    assert "step" not in vars(odd)
    assert vars(own)["step"] is method
    assert not own._optimizer_step_pre_hooks and not own._optimizer_step_post_hooks


def test_a_copy_and_a_pickle_of_an_optimizer_whose_step_is_seen_are_optimizers_alone() -> None:
    model = mlp()
    optimizer = Fused(model.parameters())
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            loss(model, 0).backward()
            for p, q in zip(model.parameters(), twin.param_groups[0]["params"], strict=True):
                q.grad = p.grad.clone()
            twin.step()
        assert monitor.step == 0
        optimizer.step()
        assert monitor.step == 1
    assert not torch.equal(twin.param_groups[0]["params"][0], mlp()[0].weight)


def test_watching_that_begins_or_ends_within_a_step_disturbs_no_other_hook() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    model, twin = mlp(), mlp()
    optimizer, monitors = sgd(model), []
    calls: list[str] = []

    def begin(*_: Any) -> None:
        calls.append("begin")
        if not monitors:
            monitors.append(gradlab.watch(model, optimizer))

    handles = [
        register_optimizer_step_post_hook(begin),
        register_optimizer_step_post_hook(lambda *_: calls.append("x")),
    ]
    with gradlab.watch(twin, [other := sgd(twin)]) as monitor:
        for number in range(3):
            for one, net in ((optimizer, model), (other, twin)):
                one.zero_grad()
                loss(net, number).backward()
                one.step()
        assert monitor.step == 3
    handles.append(optimizer.register_step_post_hook(lambda *_: monitors[0].close()))
    handles.append(optimizer.register_step_post_hook(lambda *_: calls.append("last")))
    assert monitors[0].step == 2
    optimizer.step()
    for handle in handles:
        handle.remove()
    assert calls.count("begin") == calls.count("x") == 7
    assert calls.count("last") == 1
