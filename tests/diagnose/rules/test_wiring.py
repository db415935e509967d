"""Parameters that no optimizer has, steps, or two of them move: named with their place, and look-alikes passed over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab.diagnose.context import Abstain, Context, OptimizerFacts, ParameterFacts, SharedUpdates
from gradlab.diagnose.rules import wiring
from gradlab.finding import Finding

CODES = ("GL101", "GL102", "GL104", "GL105", "GL108")

# By hand-made facts.


def parameter(name: str, **facts: object) -> ParameterFacts:
    usual: dict[str, object] = {
        "module": name.rpartition(".")[0],
        "module_class": "Linear",
        "shape": (64, 64) if name.endswith("weight") else (64,),
        "requires_grad": True,
        "is_in_model": True,
        "optimizers": (0,),
        "is_reached": True,
        "has_gradient_arrived": True,
    }
    return ParameterFacts(name=name, **(usual | facts))  # type: ignore[arg-type]


def optimizer(name: str = "Adam", steps: int = 100) -> OptimizerFacts:
    return OptimizerFacts(name=name, is_counted=True, num_steps=steps, last_step=steps - 1, groups=(), parameters=())


def model(**head: object) -> list[ParameterFacts]:
    """An encoder that is trained, and a head with some facts of its own."""
    names = "encoder.0.weight", "encoder.0.bias", "head.weight", "head.bias"
    return [parameter(name, **head if name.startswith("head") else {}) for name in names]


def context(parameters: list[ParameterFacts], *optimizers: OptimizerFacts, **more: object) -> Context:
    usual: dict[str, object] = {"step": 99, "num_backwards": 100}
    return Context(parameters=parameters, optimizers=optimizers or (optimizer(),), **(usual | more))  # type: ignore[arg-type]


UNOWNED: dict[str, object] = {"optimizers": ()}


def test_a_head_that_no_optimizer_has_is_named_as_a_module():
    (one,) = wiring.missing_parameters(context(model(**UNOWNED)))
    assert (one.sites, one.severity) == (("head",), None)
    assert one.message.startswith("head gets gradients and no optimizer has it (2 tensors, as initialised); ")


def test_single_parameters_are_named_where_the_rest_of_their_module_is_trained():
    parameters = [replace(one, optimizers=()) if one.name.endswith("weight") else one for one in model()]
    (one,) = wiring.missing_parameters(context(parameters))
    assert one.sites == ("encoder.0.weight", "head.weight")


@pytest.mark.parametrize("fact", [{"was_trained": True}, {"looks_random": False}])
def test_a_base_that_was_trained_before_is_news_only(fact: dict[str, object]):
    (one,) = wiring.missing_parameters(context(model(**UNOWNED, **fact)))
    assert (one.sites, one.severity) == (("head",), "info")


def test_a_trained_base_that_was_frozen_and_thawed_is_meant_to_be_trained():
    (one,) = wiring.missing_parameters(context(model(**UNOWNED, was_trained=True, was_frozen=True)))
    assert one.severity is None


@pytest.mark.parametrize(
    "fact", [{"requires_grad": False}, {"has_gradient_arrived": False}, {"is_changed_in_place": True}]
)
def test_what_needs_no_optimizer_is_not_missing(fact: dict[str, object]):
    assert not list(wiring.missing_parameters(context(model(**UNOWNED, **fact))))


def test_young_trainings_may_make_a_second_optimizer_yet():
    assert not list(wiring.missing_parameters(context(model(**UNOWNED), step=4, num_backwards=10)))


def test_without_any_optimizer_nothing_is_said():
    with pytest.raises(Abstain):
        list(wiring.missing_parameters(Context(parameters=model(**UNOWNED), step=99, num_backwards=100)))


def test_modules_in_a_list_are_unregistered_and_not_missing_as_well():
    outside = [
        parameter(f"blocks.{place}.weight", is_in_model=False, is_in_plain_list=True, **UNOWNED) for place in (0, 1)
    ]
    known = context([*model(), *outside])
    (one,) = wiring.unregistered(known)
    assert one.sites == ("blocks",) and "the modules in blocks are in a plain list or dict" in one.message
    assert not list(wiring.missing_parameters(known))
    assert not list(wiring.unregistered(context([*model(), *(replace(p, optimizers=(0,)) for p in outside)])))


def test_a_layer_made_in_each_forward_needs_three_of_its_kind():
    (one,) = wiring.unregistered(context(model(), made_anew={(32, 64): 3}))
    assert "a weight of 32 × 64" in one.message
    assert not list(wiring.unregistered(context(model(), made_anew={(32, 64): 2})))


def test_no_step_is_said_after_a_hundred_backwards_or_at_the_end():
    still = optimizer(steps=0)
    (one,) = wiring.never_stepped(context(model(), still, step=-1))
    assert one.message.startswith("100 backwards and not one step of Adam")
    assert list(wiring.never_stepped(context(model(), still, step=-1, num_backwards=10, is_end=True)))
    assert not list(wiring.never_stepped(context(model(), still, step=-1, num_backwards=99)))
    assert not list(wiring.never_stepped(context(model(is_changed_in_place=True), still, step=-1)))


def test_one_of_two_that_never_steps_is_named_with_what_it_has():
    optimizers = optimizer(), optimizer("SGD", steps=0)
    (one,) = wiring.never_stepped(context(model(optimizers=(1,)), *optimizers))
    assert one.sites == ("head",) and one.message.startswith("SGD, which has the parameters of head, has not stepped")
    assert not list(wiring.never_stepped(context(model(optimizers=(0, 1)), *optimizers)))


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({"num_same_gradients": 5, "cosine": 0.9}, "warning"),
        ({"cosine": -0.5}, "warning"),
        ({"cosine": -0.2}, "info"),
        ({"cosine": 0.2}, "info"),
        ({"num_looks": 2, "cosine": -0.9}, None),
    ],
)
def test_two_optimizers_disturb_where_they_repeat_or_oppose_each_other(facts: dict[str, object], severity: str | None):
    shared: dict[str, object] = {"optimizers": (0, 1), "parameters": ("head.weight", "head.bias"), "num_looks": 5}
    pair = SharedUpdates(**(shared | facts))  # type: ignore[arg-type]
    found = list(wiring.two_optimizers(context(model(), optimizer(), optimizer("SGD"), shared_updates=(pair,))))
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert all(one.sites == ("head",) for one in found)


def test_a_step_uphill_beside_one_downhill_opposes_it_sooner():
    pair = SharedUpdates(optimizers=(0, 1), parameters=("head.weight",), num_looks=5, cosine=-0.2)
    uphill = replace(optimizer(), groups=({"maximize": 1.0},))
    (one,) = wiring.two_optimizers(context(model(), optimizer(), uphill, shared_updates=(pair,)))
    assert one.severity == "warning"


FROZEN: dict[str, object] = {"requires_grad": False, "optimizers": (), "has_gradient_arrived": False}


def frozen(**facts: object) -> Context:
    names = "encoder.0.weight", "encoder.0.bias", "head.weight", "head.bias"
    usual: dict[str, object] = {"looks_random": True, "is_at_default_init": True, "is_called": True}
    own = FROZEN | usual | facts
    return context([parameter(name, **own if name == "encoder.0.weight" else {}) for name in names])


def test_a_frozen_random_matrix_is_named():
    (one,) = wiring.frozen_random(frozen())
    assert one.sites == ("encoder.0.weight",) and "frozen at its random init" in one.message


@pytest.mark.parametrize(
    "fact",
    [
        {"looks_random": False},
        {"looks_random": None, "is_at_default_init": None},
        {"was_trained": True},
        {"is_called": False},
        {"is_called": None},
        {"is_changed_in_place": True},
        {"is_at_default_init": False, "shape": (16, 16)},
    ],
)
def test_what_may_be_pretrained_a_teacher_or_not_used_is_not(fact: dict[str, object]):
    assert not list(wiring.frozen_random(frozen(**fact)))


# In training.


class Net(nn.Module):
    """An encoder of one of three kinds, and a head."""

    def __init__(self, kind: str = "mlp") -> None:
        super().__init__()
        kinds: dict[str, Callable[[], nn.Module]] = {
            "mlp": lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()),
            "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 32, 3), nn.Tanh(), Mean()),
            "gru": lambda: nn.Sequential(nn.Unflatten(1, (4, 2)), nn.GRU(2, 32, batch_first=True), Last()),
        }
        self.encoder = kinds[kind]()
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


class Last(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0][:, -1]


def train(
    net: nn.Module,
    *optimizers: torch.optim.Optimizer,
    steps: int = 42,
    step: Callable[[], object] | None = None,
    stepped: Iterable[torch.optim.Optimizer] | None = None,
) -> list[Finding]:
    with gradlab.watch(net, list(optimizers), diagnose=gradlab.Diagnose(select=CODES), strict=True) as monitor:
        for _ in range(steps):
            loss = F.cross_entropy(net(torch.randn(16, 8)), torch.randint(4, (16,)))
            net.zero_grad()
            loss.backward()
            if step is not None:
                step()
            for one in optimizers if stepped is None else stepped:
                one.step()
    return list(monitor.findings)


def adam(*modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for one in modules for p in one.parameters() if p.requires_grad], lr=1e-3)


def said(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.code, one.site, one.severity) for one in findings]


@pytest.mark.parametrize("kind", ["mlp", "conv", "gru"])
def test_healthy_training_is_silent(kind: str):
    net = Net(kind)
    assert not train(net, adam(net))
    assert not train(net, adam(net.encoder), torch.optim.SGD(net.head.parameters(), lr=0.1))


@pytest.mark.parametrize("kind", ["mlp", "conv", "gru"])
def test_a_forgotten_head_and_a_frozen_encoder_are_told(kind: str):
    net = Net(kind)
    assert said(train(net, adam(net.encoder))) == [("GL101", "head", "error")]
    net = Net(kind)
    net.encoder.requires_grad_(False)
    assert said(train(net, adam(net))) == [("GL108", "encoder", "warning")]


def test_a_probe_on_a_trained_base_is_no_more_than_news():
    net = Net()
    train(net, adam(net))
    net.head = nn.Linear(32, 4)
    assert said(train(net, adam(net.head))) == [("GL101", "encoder", "info")]
    net.encoder.requires_grad_(False)
    assert not train(net, adam(net.head))


def test_layers_that_join_later_are_no_finding():
    net = Net()
    net.encoder.requires_grad_(False)
    optimizer = adam(net.head)
    count = iter(range(100))

    def thaw() -> None:
        if next(count) == 5:
            net.encoder.requires_grad_()
            optimizer.add_param_group({"params": list(net.encoder.parameters())})

    assert [one.code for one in train(net, optimizer, step=thaw) if one.code != "GL108"] == []


def test_weights_that_are_moved_by_way_of_data_are_no_finding():
    net = Net()

    def move() -> None:
        for p in net.head.parameters():
            p.data.sub_(0.1 * p.grad)  # type: ignore[arg-type]

    assert not train(net, adam(net.encoder), step=move)


class Unregistered(nn.Module):
    """Of one of several ways not to register what is used."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.head = way, nn.Linear(8, 4)
        if way == "layers":
            self.layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
        elif way == "weights":
            self.weights = {"first": nn.Parameter(torch.randn(8, 8))}
        elif way == "matrix":
            self.matrix = torch.randn(8, 8).requires_grad_()
        elif way == "view":
            self.view = nn.Parameter(torch.randn(64)).view(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "layers":
            for layer in self.layers:
                x = layer(x)
        elif self.way == "weights":
            x = x @ self.weights["first"]
        elif self.way == "input":
            self.input = x = x.clone().requires_grad_()
        elif self.way == "made":
            x = nn.Linear(8, 8)(x)
        else:
            x = x @ getattr(self, self.way)
        return self.head(x)


@pytest.mark.parametrize(
    ("way", "site"), [("layers", "layers"), ("weights", "weights.first"), ("matrix", "matrix"), ("view", "view")]
)
def test_what_is_not_registered_is_named_by_its_attribute(way: str, site: str):
    net = Unregistered(way)
    assert said(train(net, adam(net))) in ([("GL102", site, "error")], [("GL102", site.partition(".")[0], "error")])


def test_a_layer_made_in_the_forward_has_no_place_and_an_input_is_none():
    net = Unregistered("made")
    assert said(train(net, adam(net))) == [("GL102", "", "error")]
    net = Unregistered("input")
    assert not train(net, adam(net))


@pytest.mark.filterwarnings("ignore::gradlab.errors.GradlabWarning")
def test_an_optimizer_that_is_not_stepped_is_told():
    net = Net()
    assert said(train(net, adam(net), stepped=())) == [("GL104", "", "error")]
    net = Net()
    first, second = adam(net.encoder), adam(net.head)
    (one,) = train(net, first, second, stepped=(second,), steps=102)
    assert (one.code, one.site) == ("GL104", "encoder")


def test_two_optimizers_with_the_same_gradients_are_told():
    net = Net()
    (one,) = train(net, adam(net), torch.optim.SGD(net.head.parameters(), lr=0.1), steps=52)
    assert (one.code, one.site, one.severity) == ("GL105", "head", "warning")
    assert "by the same gradients" in one.message


def test_a_copy_of_a_trained_network_that_is_frozen_is_no_finding():
    base = Net()
    train(base, torch.optim.Adam(base.parameters(), lr=1e-2), steps=120)
    net = Net()
    net.encoder = copy.deepcopy(base.encoder).requires_grad_(False)
    assert not train(net, adam(net))


def test_the_hooks_that_ask_for_calls_are_gone_afterwards():
    net = Net()
    net.encoder.requires_grad_(False)
    train(net, adam(net))
    assert all("_compiled_call_impl" not in vars(one) for one in net.modules())
