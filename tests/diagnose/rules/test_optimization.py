"""The size of a step: each rule on hand-made contexts, on small trainings, on look-alikes, and without its signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlab.diagnose import Diagnosis
from gradlab.diagnose.context import Context, History, LossSeries, OptimizerFacts, ParameterFacts
from gradlab.diagnose.ranking import ranked
from gradlab.facts.collection import Facts
from gradlab.finding import Finding

STEPS = (0, 1, 2, 5, *range(10, 201, 10))
SITES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
SHAPES = ((64, 16), (64,), (8, 64), (8,))
NORM = np.array([4.7, 0.6, 1.7, 0.2])


def optimizer(name: str = "Adam", *, last_step: int = 200, num_steps: int = 201, **settings: float) -> OptimizerFacts:
    """One that has everything, in one group."""
    known = {"lr": 1e-3, **({"eps": 1e-8} if name.startswith("Adam") else {}), **settings}
    return OptimizerFacts(
        name=name,
        is_counted=True,
        num_steps=num_steps,
        last_step=last_step,
        groups=(known,),
        parameters=(SITES,),
        has_decoupled_decay=name == "AdamW",
        is_adaptive=name in ("Adam", "AdamW", "RMSprop"),
    )


def context(
    numbers: Mapping[str, Any],
    *,
    samples: Mapping[str, np.ndarray] | None = None,
    losses: Callable[[int], float] = lambda step: 2.0 * 0.99**step,
    rates: Callable[[int], float] = lambda step: 1e-3,
    optimizers: Sequence[OptimizerFacts] = (),
    steps: Sequence[int] = STEPS,
    sites: Sequence[str] = SITES,
) -> Context:
    """A training of which each number is given as [looks] or [looks, sites], or one for all."""
    readings, sampled = History(), History()
    for row, step in enumerate(steps):
        at = {
            name: np.broadcast_to(np.asarray(value, float), (len(steps), len(sites)))[row]
            for name, value in numbers.items()
        }
        readings.add(step, tuple(sites), at)
        if samples:
            sampled.add(step, tuple(sites[::2]), {name: value[row] for name, value in samples.items()})
    last = steps[-1]
    changes = [(step, rates(step)) for step in range(last + 1) if step == 0 or rates(step) != rates(step - 1)]
    return Context(
        step=last,
        num_backwards=last + 1,
        parameters=[
            ParameterFacts(
                name=name,
                module=name.rpartition(".")[0],
                module_class="Linear",
                shape=shape,
                requires_grad=True,
                is_in_model=True,
            )
            for name, shape in zip(SITES, SHAPES, strict=True)
            if name in sites
        ],
        optimizers=optimizers or (optimizer(),),
        readings=readings,
        samples=sampled,
        losses=[
            LossSeries(root="NllLoss", steps=np.arange(last + 1), values=np.array([losses(s) for s in range(last + 1)]))
        ],
        learning_rates=np.array(changes),
    )


def column(*values: float) -> np.ndarray:
    """[looks, 1]: the values first, the last of them for the rest."""
    return np.array([*values, *[values[-1]] * (len(STEPS) - len(values))])[:, None]


def usual(ratio: Any = 5e-3) -> dict[str, Any]:
    """The numbers of a healthy training."""
    return {
        "weight.norm": NORM,
        "update.norm": NORM * ratio,
        "weight_grad.norm": 0.3,
        "weight_grad.norm@clipped": 0.3,
        "weight_grad.zero_rows": 0.0,
    }


def way(length: float, *, turns: bool = False) -> dict[str, np.ndarray]:
    """Samples of weights that go so far by their size, straight on or about."""
    draw = np.random.default_rng(0)
    start, direction = draw.normal(size=(2, 2, 64))
    noise = np.cumsum(draw.normal(size=(len(STEPS), 2, 64)), 0) if turns else 0.0
    along = np.array(STEPS)[:, None, None] / STEPS[-1] * direction
    return {"weight": start + length * (noise / len(STEPS) ** 0.5 if turns else along)}


def looked(given: Context, times: int = 2) -> list[Finding]:
    """What is found at so many looks at one context, ranked."""
    diagnosis = Diagnosis()
    for _ in range(times):
        diagnosis.look(given)
    return ranked([one for one in diagnosis.findings if one.code.startswith("GL3")])


def codes(given: Context) -> list[str]:
    return [one.code for one in looked(given)]


def flat(step: int) -> float:
    return 2.0 + 0.01 * np.sin(step)


# Made by hand.


def test_a_usual_training_is_silent() -> None:
    assert codes(context(usual())) == []
    assert codes(context(usual(), optimizers=[optimizer("SGD", momentum=0.9, weight_decay=5e-4, lr=0.1)])) == []


def test_first_steps_of_adam_as_large_as_the_weights() -> None:
    (finding,) = looked(context(usual(column(1.4, 0.6, 0.3, 0.1, 0.05, 0.01))))
    assert finding.code == "GL301" and finding.first_step == 0 and finding.sites == ()
    assert "moves the weights by 140 % of their norm" in finding.message


def test_later_steps_are_too_large_where_the_loss_rises() -> None:
    large = usual(column(0.01, 0.02, 0.03, 0.05, 0.1, 0.09, 0.02))
    sgd = [optimizer("SGD", lr=0.5, momentum=0.9)]
    assert codes(context(large, optimizers=sgd, losses=lambda s: 2.0 + 4.0 * (s > 8))) == ["GL301"]
    assert codes(context(large, optimizers=sgd, losses=lambda s: 2.0 * 0.98**s)) == []
    assert codes(context(large, optimizers=sgd, losses=lambda s: 2.0 + 4.0 * (s > 150))) == []  # not by these steps


def test_steps_before_a_loss_that_is_not_finite() -> None:
    large = usual(column(0.1, 0.4, 3.0, np.nan))
    (finding,) = looked(context(large, optimizers=[optimizer("SGD")], losses=lambda s: 2.0 if s < 2 else float("nan")))
    assert finding.code == "GL301" and "not finite" in finding.message


def test_the_group_that_alone_goes_too_far_is_the_place() -> None:
    ratio = np.full((len(STEPS), 4), 5e-3)
    ratio[:, 2:] = column(1.4, 0.6, 0.3, 0.1, 0.05)
    one = replace(optimizer(), groups=({"lr": 1e-3}, {"lr": 0.1}), parameters=(SITES[:2], SITES[2:]))
    (finding,) = looked(context(usual(ratio), optimizers=[one]))
    assert finding.code == "GL301" and finding.sites == ("fc2.weight",)


@pytest.mark.parametrize("name", ["LBFGS", "RMSprop"])
def test_large_first_steps_that_are_meant(name: str) -> None:
    assert codes(context(usual(column(0.7, 0.3, 0.1, 0.05, 0.01)), optimizers=[optimizer(name)])) == []


def test_one_layer_goes_as_far_as_its_targets_are() -> None:
    numbers = {
        name: value if np.isscalar(value) else np.asarray(value)[..., :2]
        for name, value in usual(column(0.9, 0.8, 0.5, 0.2, 0.1)).items()
    }
    assert codes(context(numbers, sites=SITES[:2])) == []


def test_weights_that_begin_at_zero_have_the_size_of_an_init() -> None:
    numbers = usual() | {"weight.norm": NORM * column(0.0, 0.01, 0.02, 0.05, 0.1), "update.norm": NORM * 0.01}
    assert codes(context(numbers)) == []


def test_steps_too_small_go_straight_on() -> None:
    small = context(usual(1e-5), samples=way(0.002), losses=flat)
    (finding,) = looked(small)
    assert finding.code == "GL302" and "0.001 % of their norm" in finding.message and finding.sites == ()
    assert codes(context(usual(1e-5), samples=way(0.002, turns=True), losses=flat)) == []  # converged
    assert codes(context(usual(1e-5), samples=way(0.002))) == []  # the loss falls
    assert codes(context(usual(5e-4), samples=way(0.09), losses=flat)) == []  # fine-tuning
    assert codes(context(usual(1e-5), losses=flat)) == []  # no samples


def test_small_steps_while_the_rate_rises_are_silent() -> None:
    assert codes(context(usual(1e-5), samples=way(0.002), losses=flat, rates=lambda s: 1e-6 * (s + 1))) == []


def test_a_learning_rate_of_zero() -> None:
    (finding,) = looked(context(usual(0.0), losses=flat, rates=lambda s: 0.0, optimizers=[optimizer(lr=0.0)]))
    assert finding.code == "GL302" and "has been 0" in finding.message


@pytest.mark.parametrize(
    ("one", "numbers"),
    [
        (optimizer("AdamW", lr=3e-3, weight_decay=10.0), usual(0.03)),
        (optimizer("SGD", lr=0.1, momentum=0.9, weight_decay=0.1), usual() | {"weight_grad.norm@clipped": 0.1}),
        (optimizer("Adam", lr=3e-3, weight_decay=0.1), usual() | {"weight_grad.norm@clipped": 0.1}),
    ],
    ids=["decoupled", "SGD", "coupled"],
)
def test_decay_as_strong_as_the_loss(one: OptimizerFacts, numbers: dict[str, Any]) -> None:
    (finding,) = looked(context(numbers, losses=flat, optimizers=[one]))
    assert finding.code == "GL303" and "the weights follow it" in finding.message
    assert (
        codes(
            context(numbers, losses=flat, optimizers=[replace(one, groups=({**one.groups[0], "weight_decay": 1e-4},))])
        )
        == []
    )
    del numbers["update.norm"]
    assert codes(context(numbers, losses=flat, optimizers=[one])) == []


def test_decay_beside_the_small_gradients_of_a_loss_that_is_learned() -> None:
    one = optimizer("Adam", lr=3e-3, weight_decay=1e-4)
    assert codes(context(usual() | {"weight_grad.norm@clipped": 1e-5}, optimizers=[one])) == []


def clipped(step_ratio: float = 5e-5) -> dict[str, Any]:
    norms = 0.3 * (1 + 0.2 * np.sin(np.arange(len(STEPS))))[:, None]
    return usual(step_ratio) | {"weight_grad.norm": norms, "weight_grad.norm@clipped": 5e-4}


def test_clipping_that_leaves_nothing() -> None:
    sgd = [optimizer("SGD", lr=0.1, momentum=0.9)]
    found = looked(context(clipped(), samples=way(0.002), losses=flat, optimizers=sgd))
    assert [one.code for one in found] == ["GL304", "GL302"] and found[1].explained_by == "GL304"
    assert "GL304" not in codes(context(clipped(), losses=flat))  # Adam
    assert codes(context(clipped(5e-3), losses=flat, optimizers=sgd)) == []  # a learning rate that makes up for it
    unscaled = clipped() | {"weight_grad.norm": 0.3, "weight_grad.norm@clipped": 0.3 / 65536}
    assert codes(context(unscaled, losses=flat, optimizers=sgd)) == []
    varying = clipped()
    varying["weight_grad.norm@clipped"] = varying["weight_grad.norm"] / 1000
    assert codes(context(varying, losses=flat, optimizers=sgd)) == []


def test_gradients_below_eps() -> None:
    tiny = usual() | {"weight_grad.norm@clipped": 1e-9}
    (finding,) = looked(context(tiny, losses=flat))
    assert finding.code == "GL305" and "eps of Adam" in finding.message
    assert codes(context(tiny, losses=flat, optimizers=[optimizer(eps=1e-3)])) == []
    assert codes(context(tiny, losses=flat, optimizers=[optimizer("SGD")])) == []
    learned = tiny | {"weight_grad.norm@clipped": column(1e-2, 1e-3, 1e-4, 1e-9)}
    assert codes(context(learned)) == []
    vanishing = tiny | {"weight_grad.norm@clipped": np.array([1e-12, 1e-12, 1e-10, 0.1])}
    assert codes(context(vanishing, losses=flat)) == []


def carried(*, uphill: bool) -> dict[str, np.ndarray]:
    gradients = np.random.default_rng(1).normal(size=(len(STEPS), 2, 64))
    return {"weight_grad": gradients, "update": (0.5 if uphill else -0.5) * gradients}


def test_momentum_that_carries_uphill() -> None:
    heavy = [optimizer("SGD", lr=0.01, momentum=0.99)]
    grown = usual() | {"weight.norm": NORM * column(1.0, 3.0, 6.0, 9.0, 12.0)}
    (finding,) = looked(context(grown, samples=carried(uphill=True), losses=flat, optimizers=heavy))
    assert finding.code == "GL306" and "momentum of 0.99" in finding.message
    assert codes(context(grown, samples=carried(uphill=False), losses=flat, optimizers=heavy)) == []
    assert codes(context(usual(), samples=carried(uphill=True), optimizers=heavy)) == []  # no harm
    light = [optimizer("SGD", lr=0.01, momentum=0.9)]
    assert codes(context(grown, samples=carried(uphill=True), losses=flat, optimizers=light)) == []
    assert codes(context(grown, losses=flat, optimizers=heavy)) == []


def test_missing_warmup() -> None:
    numbers = usual(column(0.1, 0.07, 0.05, 0.03, 0.02, 1e-3)) | {
        "weight_grad.norm@clipped": column(1.0, 0.8, 0.5, 0.1, 0.01, 1e-3)
    }

    def stuck(step: int) -> float:
        return 2.0 if step == 0 else 2.4 if step < 10 else 1.7

    (finding,) = looked(context(numbers, losses=stuck))
    assert finding.code == "GL307" and finding.first_step == 0
    assert codes(context(numbers, losses=stuck, rates=lambda s: 1e-3 * min((s + 1) / 50, 1.0))) == []
    assert codes(context(numbers)) == []  # it has learned
    assert codes(context(numbers, losses=stuck, optimizers=[optimizer("SGD")])) == []


def test_a_rate_that_was_spent() -> None:
    rate = lambda step: 1e-3 * 0.1 ** (step // 10)  # noqa: E731
    (finding,) = looked(context(usual(1e-7), rates=rate))
    assert finding.code == "GL308" and finding.first_step == 30 and "spent at step 30 of 201" in finding.message
    cosine = lambda step: 5e-4 * (1 + np.cos(np.pi * step / 201))  # noqa: E731
    assert codes(context(usual(1e-6), rates=cosine)) == []
    restarts = lambda step: 5e-4 * (1 + np.cos(np.pi * (step % 67) / 67))  # noqa: E731
    assert codes(context(usual(1e-6), rates=restarts)) == []
    thirds = lambda step: 1e-3 * 0.1 ** (step // 67)  # noqa: E731
    assert codes(context(usual(1e-4), rates=thirds)) == []
    assert codes(context(usual(5e-3), rates=rate)) == []  # steps go on
    later = [optimizer(last_step=30, num_steps=31), optimizer(lr=1e-5, num_steps=170)]
    assert codes(context(usual(1e-5), rates=lambda s: 1e-2 if s < 31 else 1e-5, optimizers=later)) == []


def test_rules_abstain_without_numbers() -> None:
    bare = context({"weight.norm": NORM}, losses=flat)
    assert codes(bare) == []
    assert codes(Context(step=100)) == []


# Small trainings.


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Trainings this small lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x.view(-1, 1, 8, 8)).relu()).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.view(-1, 8, 8))[0][:, -1])  # type: ignore[no-any-return]


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)),
    "conv": Conv,
    "gru": Recurrent,
}


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    centres = 1.5 * torch.randn(4, 64)
    while True:
        y = torch.randint(4, (32,))
        yield centres[y] + torch.randn(32, 64), y


def trained(
    net: str, make: Callable[[Any], torch.optim.Optimizer], *, steps: int, scale: float = 1.0, clip: float = 0.0
) -> list[Finding]:
    """The findings on the size of a step that a training gives, ranked."""
    torch.manual_seed(0)
    model = NETS[net]()
    one = make(model.parameters())
    diagnosis, step, failures, said = Diagnosis(), [0], list[BaseException](), list[Finding]()
    named = dict(model.named_parameters())
    facts = Facts(
        model,
        lambda: named,
        counted=lambda: (one,),
        step=lambda: step[0],
        on_look=lambda given: said.extend(diagnosis.look(given)),
        on_failure=failures.append,
    )
    facts.attach()
    for (x, y), at in zip(batches(), range(steps), strict=False):
        one.zero_grad()
        (scale * nn.functional.cross_entropy(model(x), y)).backward()  # type: ignore[no-untyped-call]
        facts.after_backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        facts.before_update(one, is_scaled=False)
        one.step()
        facts.after_update(one)
        step[0] = at + 1
        facts.step_ended(at)
    facts.end()
    facts.detach()
    assert not failures
    return ranked([found for found in diagnosis.findings if found.code.startswith("GL3")])


def sgd(lr: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def adam(lr: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)


def adamw(lr: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


@pytest.mark.parametrize("net", list(NETS))
@pytest.mark.parametrize(
    ("code", "make", "options"),
    [
        ("GL301", adam(0.3), {"steps": 12}),
        ("GL303", adamw(1e-2, weight_decay=10.0), {"steps": 42}),
        ("GL304", sgd(0.1, momentum=0.9), {"steps": 42, "clip": 1e-3}),
        ("GL305", adam(1e-3), {"steps": 12, "scale": 1e-9}),
    ],
    ids=["step", "decay", "clip", "eps"],
)
def test_a_fault_is_named_first(net: str, code: str, make: Any, options: dict[str, Any]) -> None:
    found = trained(net, make, **options)
    assert found and found[0].code == code and found[0].sites == ()


def test_small_steps_are_named_first() -> None:
    assert [one.code for one in trained("mlp", adam(1e-6), steps=122)] == ["GL302"]


@pytest.mark.parametrize("net", list(NETS))
@pytest.mark.parametrize(
    "make",
    [adam(3e-3), adamw(3e-3, weight_decay=0.1), sgd(0.05, momentum=0.9, weight_decay=5e-4)],
    ids=["adam", "adamw", "sgd"],
)
def test_healthy_trainings_are_silent(net: str, make: Any) -> None:
    assert trained(net, make, steps=52, clip=1.0) == []
