"""A copy of a watched model is an unwatched one that computes with its own weights, however it was made and when."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradlab import Monitor, NonFinite, Tap, watch
from gradlab.hooks.call_hooks import CALL_ATTRIBUTE
from gradlab.sites.forward import forward_walk, sites_of

TAPS = [Tap(["*", "*:in", "input"], of=["weight_grad", "output", "output_grad"])]


class Recurrent(nn.Module):
    """Holds a class with a `__getstate__` of its own, which knows nothing of the compiled call."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.unsqueeze(1))
        return self.head(out[:, -1])


class OwnState(nn.Linear):
    """Hands over its attributes as they are, with one left out, as what holds a lock does."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.lock: Any = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.Lock()


class OwnDeepcopy(nn.Linear):
    """Copies its weights, and shares all else."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def __deepcopy__(self, memo: Any) -> OwnDeepcopy:
        new = type(self).__new__(type(self))
        vars(new).update(vars(self))
        vars(new)["_parameters"] = copy.deepcopy(self._parameters, memo)
        return new


class OwnReduce(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OwnReduce, (), dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class OwnGetattr(nn.Module):
    """Passes everything unknown on to what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = nn.Linear(4, 4)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.wrapped(x) * self.in_features


class OwnSlots(nn.Linear):
    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__(4, 4)
        object.__setattr__(self, "factor", 2.0)

    def __getstate__(self) -> Any:
        return dict(vars(self)), {"factor": self.factor}

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state[0])
        object.__setattr__(self, "factor", state[1]["factor"])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class OwnCall(nn.Linear):
    """As GPyTorch's modules are: what it does comes before the hooks."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x + 1)


class GuardsItsAttributes(nn.Linear):
    """Refuses attributes that it does not know, and to have its `__dict__` exchanged."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__" or name.startswith("_compiled"):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(1))[0]
        return y.squeeze(1)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "own_state": OwnState,
    "own_deepcopy": OwnDeepcopy,
    "own_reduce": OwnReduce,
    "own_getattr": OwnGetattr,
    "own_slots": OwnSlots,
    "own_call": OwnCall,
    "guards_attributes": GuardsItsAttributes,
    "attention": Attention,
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "fx": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    "scripted": lambda: torch.jit.script(nn.Linear(4, 4)),
    "norm": lambda: nn.BatchNorm1d(4),
}
NO_PICKLE = {"weight_norm", "spectral_norm", "scripted"}  # torch refuses


def by_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


def averaged(model: nn.Module) -> nn.Module:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


DEEP: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch_save,
    "average": averaged,
}

COPIES = ("deepcopy", "average")


def handed_over(model: nn.Module) -> nn.Module:
    new = type(model).__new__(type(model))
    vars(new).update(vars(model))
    return new


SHALLOW: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.copy,
    "vars": handed_over,
    "replica": lambda model: model._replicate_for_data_parallel(),
}


def built(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTORCH_JIT_LOG_LEVEL", "")
        return nn.Sequential(nn.Linear(4, 4), KINDS[kind](), nn.Linear(4, 4))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def tripled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    return model.eval()


def has_no_call_hook(model: nn.Module) -> bool:
    return all(
        vars(m).get(CALL_ATTRIBUTE) is None for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:.*TorchScript.*:DeprecationWarning")
@pytest.mark.parametrize("due", [1, 2], ids=["armed", "disarmed"])
@pytest.mark.parametrize(
    ("kind", "way"), [(kind, way) for kind in KINDS for way in DEEP if kind not in NO_PICKLE or way in COPIES]
)
def test_a_deep_copy_computes_with_its_own_weights(kind: str, way: str, due: int) -> None:
    model, x = built(kind), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    taps = [Tap(tap.at, of=tap.of, every=due) for tap in TAPS]
    with watch(model, optimizer, taps=taps, strict=True) as monitor:
        step(model, optimizer, x)
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        twin = DEEP[way](model)
        bare = built(kind)
        bare.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(tripled(twin)(x), tripled(bare)(x))
        assert has_no_call_hook(twin)
        assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
        before = monitor.latest()
        twin(x).sum().backward()
        step(model, optimizer, x)
        assert monitor.step == 2 and monitor.latest().keys() >= before.keys()


LEAVES = ["linear", "own_state", "own_deepcopy", "own_reduce", "own_call", "lstm", "norm"]


@pytest.mark.parametrize("due", [1, 2], ids=["armed", "disarmed"])
@pytest.mark.parametrize("way", SHALLOW)
@pytest.mark.parametrize("kind", LEAVES)
def test_a_shallow_copy_computes_with_its_own_weights(kind: str, way: str, due: int) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 4) if kind == "lstm" else KINDS[kind]()
    x = torch.randn(3, 4)

    def first(value: Any) -> Tensor:
        return value[0] if isinstance(value, tuple) else value  # type: ignore[no-any-return]

    def with_weights(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [3 * w.detach() for w in model._flat_weights]  # type: ignore[union-attr]
        else:
            vars(module)["_parameters"] = {name: nn.Parameter(3 * p.detach()) for name, p in model._parameters.items()}
        return module

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    expected = first(with_weights(copy.deepcopy(model))(x))
    taps = [Tap("*put*", of=["output", "output_grad"], every=due)]
    with watch(model, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(3):
            made_now = with_weights(SHALLOW[way](model))
            optimizer.zero_grad()
            first(model(x)).square().sum().backward()
            for _again in range(2):
                assert torch.equal(first(made_now(x)), expected)
            assert has_no_call_hook(made_now)
            optimizer.step()
        sites = monitor.latest()["output.norm"].schema.sites
        assert not [site for site in sites if "#2" in site]


def test_a_copy_made_while_armed_and_called_after_the_end_is_a_plain_module() -> None:
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=[Tap("*put", of="output")], strict=True):
        twins = [make(model) for make in SHALLOW.values()]
        step(model, optimizer, x)
    for twin in twins:
        vars(twin)["_parameters"] = {"weight": nn.Parameter(torch.zeros(4, 4)), "bias": nn.Parameter(torch.ones(4))}
        assert torch.equal(twin(x), torch.ones(3, 4))
        assert has_no_call_hook(twin)
        assert not twin._forward_pre_hooks


def test_a_copy_made_and_called_inside_a_forward_leaves_the_numbers_as_they_are() -> None:
    class CallsItsCopy(nn.Module):
        def __init__(self, copies: bool) -> None:
            super().__init__()
            self.fc, self.copies = nn.Linear(4, 4), copies

        def forward(self, x: Tensor) -> Tensor:
            if self.copies:
                for make in (copy.deepcopy, copy.copy, handed_over):
                    assert make(self.fc)(x).shape == (3, 4)
            return self.fc(x).relu()

    found = []
    for copies in (False, True):
        torch.manual_seed(0)
        model, x = CallsItsCopy(copies), torch.randn(3, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer, taps=[Tap(["fc", "fc:in", "output"], of=["output", "output_grad"])]) as monitor:
            for _ in range(2):
                step(model, optimizer, x)
            found.append({name: dict(series.items()) for name, series in monitor.latest().items()})
    assert str(found[0]) == str(found[1])  # as text: what has no gradient is NaN


def test_threads_and_recursion_are_the_module_itself() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            y: Tensor = self.fc(x)
            return self(y, depth - 1) if depth else y

    model, x = Recursive(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, taps=[Tap("*", of="output")], strict=True) as monitor:
        step(model, optimizer, x)
        assert {"fc", "fc#2", "fc#3"} <= set(monitor.latest()["output.norm"].schema.sites)


def test_the_replica_of_a_block_sees_its_own_children() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=TAPS, strict=True) as monitor:
        replica = model._replicate_for_data_parallel()
        children = [child._replicate_for_data_parallel() for child in model]
        vars(replica)["_modules"] = {str(number): child for number, child in enumerate(children)}
        for child in children:
            vars(child)["_parameters"] = {"weight": nn.Parameter(torch.eye(4)), "bias": None}
        assert torch.equal(replica(x), x)
        step(model, optimizer, x)
        assert "0#2" not in monitor.latest()["output.norm"].schema.sites


@pytest.mark.parametrize("way", [*DEEP, *SHALLOW])
def test_no_hook_of_any_part_of_a_monitor_follows_a_copy(way: str, tmp_path: Any) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    make = (DEEP | SHALLOW)[way]
    with Monitor(
        model, optimizer, taps=TAPS, nonfinite=NonFinite(), performance=True, logdir=tmp_path, strict=True
    ) as monitor:
        twins = []
        for _ in range(5):  # in the third, the calls are recorded for counting FLOPs
            twins.append(make(model))
            step(model, optimizer, x)
            for twin in twins:
                assert twin(x).shape == (3, 4)
        if way in DEEP:  # a shallow one calls the parts of the model, which then is what runs
            forward = 2 * (2 * 3 * 4 * 4)
            performance = monitor._training_step.performance
            assert performance is not None
            assert performance.flops == forward + forward + forward // 2  # no gradient of the input
    for twin in twins:
        for part in twin.modules():
            for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
                assert not type(hook).__module__.startswith("gradlab")


def test_a_copy_that_shares_the_hooks_of_a_walk_is_not_shown() -> None:
    class CallsItsCopy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + handed_over(self.fc)(x) + copy.deepcopy(self.fc)(x)

    names = [site.name for site in sites_of(CallsItsCopy(), torch.randn(3, 4))]
    assert [name for name in names if name.startswith("fc") and "." not in name] == ["fc:in", "fc"]
    model = nn.Linear(4, 4)
    with forward_walk(model, lambda name, value: value * 0):
        twin = copy.deepcopy(model)
    assert torch.equal(twin(torch.ones(1, 4)), model(torch.ones(1, 4)))


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def test_a_generated_module_is_watched_as_any_other() -> None:
    model, x = torch.fx.symbolic_trace(Watched()), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, taps=[Tap("*", of=["output", "output_grad"])], strict=True) as monitor:
        step(model, optimizer, x)
        sites = set(monitor.latest()["output.norm"].schema.sites)
        assert {"body", "head", "output"} <= sites
        model.recompile()
        step(model, optimizer, x)
        assert set(monitor.latest()["output.norm"].schema.sites) == sites
        hidden: Tensor = model.body(x)
        assert monitor.latest()["output.norm"]["body"] == pytest.approx(float(hidden.detach().norm()), rel=1e-5)


@pytest.mark.parametrize("due", [1, 2])
def test_a_symbolic_trace_of_a_watched_model_is_unwatched(due: int) -> None:
    model, x = Watched(), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, taps=[Tap("*", of=["output", "output_grad"], every=due)], strict=True) as monitor:
        step(model, optimizer, x)
        traced = torch.fx.symbolic_trace(model)
        assert [node.op for node in traced.graph.nodes] == [
            "placeholder", "call_module", "call_method", "call_module", "output"
        ]  # fmt: skip
        for twin in (traced, copy.deepcopy(traced)):
            assert torch.equal(twin(x), model(x))
        step(model, optimizer, x)
        assert monitor.step == 2
