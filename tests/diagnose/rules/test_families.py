"""Saturated attention, idle experts, winning discriminators, unbounded critics and collapse, beside healthy twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradlab
from gradlab import Tap
from gradlab.diagnose import Diagnose, Diagnosis
from gradlab.diagnose.context import Context, History, LossGraph, LossSeries, ParameterFacts
from gradlab.finding import Finding

STEPS = (0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80)


def looked(made: Context, select: str) -> list[Finding]:
    diagnosis = Diagnosis(Diagnose(select=[select]))
    for _ in range(3):
        diagnosis.look(made)
    return diagnosis.findings


def attention(first: float, keys: int = 16, later: float = 0.9) -> Context:
    made = Context(step=80)
    for step in STEPS:
        numbers = {"max_probability": np.array([first if step < 5 else later]), "keys": np.array([float(keys)])}
        made.attentions.add(step, ("attention.query",), numbers)
    return made


def test_attention_that_is_sharp_at_the_start_is_named():
    (finding,) = looked(attention(0.96), "GL601")
    assert finding.sites == ("attention.query",) and "96% of its weight to one of 16 keys" in finding.message


@pytest.mark.parametrize("made", [attention(0.1), attention(0.3), attention(0.95, keys=2), Context(step=9)])
def test_attention_that_becomes_sharp_or_has_few_keys_is_not(made: Context):
    assert looked(made, "GL601") == []


def mixture(active: dict[int, list[int]], *, has_router: bool = True, count: int = 4) -> Context:
    """Experts that have a gradient at the looks named, all where none is."""
    sites = [f"moe.experts.{number}.fc.weight" for number in range(count)]
    names = [*sites, *(["moe.router.weight"] if has_router else ["moe.stem.weight"])]
    shapes = [(8, 8)] * count + [(count, 8) if has_router else (7, 8)]
    made = Context(step=STEPS[-1])
    made.parameters = [
        ParameterFacts(name=name, module="", module_class="Linear", shape=shape, requires_grad=True, is_in_model=True)
        for name, shape in zip(names, shapes, strict=True)
    ]
    for look, step in enumerate(STEPS):
        gradients = [1.0 if look in active.get(n, range(len(STEPS))) else np.nan for n in range(count)]
        made.readings.add(step, tuple(names), {"weight_grad.norm": np.array([*gradients, 1.0])})
    return made


def test_experts_that_a_router_leaves_out_are_named():
    (finding,) = looked(mixture({1: [0, 1, 2], 3: []}), "GL602")
    assert finding.sites == ("moe.experts.1.fc.weight".removesuffix(".fc.weight"), "moe.experts.3")
    assert finding.message.startswith("2 of the 4 experts in moe.experts have had no gradient since")


def test_one_idle_expert_alone_is_a_note():
    (finding,) = looked(mixture({2: [0, 1]}), "GL602")
    assert finding.severity == "info"


@pytest.mark.parametrize(
    "made",
    [
        mixture({}),
        mixture({1: [0, 3, 6, 9, 11], 3: [1, 5, 9]}),
        mixture({1: [], 3: []}, has_router=False),
        mixture({0: [], 1: [], 2: [], 3: []}),
    ],
    ids=["all are used", "now and then", "tasks", "none at all"],
)
def test_experts_in_use_and_heads_of_tasks_are_not(made: Context):
    assert looked(made, "GL602") == []


def adversaries(functions: dict[str, int], mine: np.ndarray, others: np.ndarray) -> Context:
    d = LossGraph(root="Add", reached=frozenset({"d"}), functions=functions)
    g = LossGraph(root="Mean", reached=frozenset({"d", "g"}), functions={"Mean": 1})
    steps = np.arange(len(mine))
    series = [LossSeries(root="Add", steps=steps, values=mine), LossSeries(root="Mean", steps=steps, values=others)]
    return Context(step=99, graphs=[d, g], losses=series)


def test_a_discriminator_that_wins_is_told():
    falling = np.maximum(1.39 * 0.9 ** np.arange(100), 0.01)
    assert len(looked(adversaries({"Softplus": 2}, falling, 5 - falling), "GL603")) == 1
    assert looked(adversaries({"Softplus": 2}, np.full(100, 1.3), np.full(100, 0.8)), "GL603") == []
    assert looked(adversaries({"NllLoss": 1}, falling, 5 - falling), "GL603") == []  # a task that is learned
    assert looked(Context(step=99), "GL603") == []


def test_a_critic_that_runs_away_is_told():
    growing, flat = -0.1 * 1.08 ** np.arange(100), np.sin(np.arange(100))
    assert len(looked(adversaries({"Mean": 2, "Sub": 1}, growing, flat), "GL604")) == 1
    assert looked(adversaries({"Mean": 2, "Sub": 1}, flat, flat), "GL604") == []
    assert looked(adversaries({"Mean": 3, "LinalgVectorNorm": 1, "Pow": 1}, growing, flat), "GL604") == []


def embedded(first: float, last: float, **functions: int) -> Context:
    made = Context(step=80, embeddings=History())
    made.graphs = [LossGraph(root="Neg", functions={"LinalgVectorNorm": 2} | functions)]
    for look, step in enumerate(STEPS):
        spread = first + (last - first) * look / (len(STEPS) - 1)
        made.embeddings.add(step, ("head.weight",), {"spread": np.array([spread])})
    return made


def test_embeddings_that_become_alike_are_named():
    (finding,) = looked(embedded(0.75, 0.3), "GL605")
    assert finding.sites == ("head.weight",)
    assert len(looked(embedded(0.09, 0.05), "GL605")) == 1


@pytest.mark.parametrize("made", [embedded(0.12, 0.98), embedded(0.79, 0.74), embedded(0.75, 0.3, NllLoss=1)])
def test_embeddings_that_spread_or_have_labels_are_not(made: Context):
    assert looked(made, "GL605") == []


# Real trainings.


class Attention(nn.Module):
    def __init__(self, scale: float, kind: str) -> None:
        super().__init__()
        self.kind, self.scale = kind, scale
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.scale * self.query(x), self.key(x), self.value(x)
        if self.kind == "fused":
            return self.head(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(1))
        weights = (q @ k.transpose(1, 2) / 4).softmax(-1)
        if self.kind == "dropout":
            weights = F.dropout(weights, 0.1)
        return self.head((weights @ v).mean(1))


@pytest.mark.parametrize("kind", ["plain", "dropout", "fused"])
@pytest.mark.parametrize(("scale", "codes"), [(100.0, ["GL601"]), (1.0, [])])
def test_real_attention(kind: str, scale: float, codes: list[str]):
    torch.manual_seed(0)
    model = Attention(scale, kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"taps": [Tap("*", of="weight_grad")], "diagnose": Diagnose(select=["GL601"]), "strict": True}
    with gradlab.watch(model, optimizer, **options) as monitor:  # type: ignore[arg-type]
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 10, 16)), torch.randint(3, (8,))).backward()
            optimizer.step()
    assert [one.code for one in monitor.findings] == codes
    assert all(one.sites[0].startswith("query") for one in monitor.findings)
