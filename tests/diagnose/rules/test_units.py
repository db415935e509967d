"""Dead units, layers of zeros and units that are all alike are named with their layer; sparse and waiting ones not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradlab
from gradlab import Tap
from gradlab.diagnose import Diagnose, Diagnosis
from gradlab.diagnose.context import Context, ParameterFacts
from gradlab.finding import Finding

STEPS = (0, 1, 2, 5, 10, 20, 30, 40, 50, 60)
CODES = ["GL401", "GL402", "GL403", "GL404", "GL405", "GL407", "GL501"]


def context(
    silent: Mapping[str, np.ndarray],
    *,
    constant: Mapping[str, float] | None = None,
    weights: Mapping[str, float] | None = None,
    equal: Mapping[str, float] | None = None,
    gradients: Mapping[str, float] | None = None,
) -> Context:
    """Ten looks at weights of eight rows, in forward order; `silent` has [looks, 8] by weight."""
    made = Context(step=STEPS[-1])
    sites = tuple(silent)
    made.parameters = [
        ParameterFacts(
            name=site,
            module=site.removesuffix(".weight"),
            module_class="Linear",
            shape=(8, 8),
            requires_grad=True,
            is_in_model=True,
        )
        for site in sites
    ]

    def by_site(values: Mapping[str, float] | None, usual: float) -> np.ndarray:
        return np.array([(values or {}).get(site, usual) for site in sites])

    for look, step in enumerate(STEPS):
        rows = np.full((len(sites), 64), np.nan)
        rows[:, :8] = np.stack([silent[site][look] for site in sites])
        made.rows.add(step, sites, {"silent": rows})
        made.readings.add(
            step,
            sites,
            {
                "weight.norm": by_site(weights, 1.0),
                "weight_grad.norm": by_site(gradients, 0.1),
                "update.norm": by_site(gradients, 0.1),
                "weight.equal_rows": by_site(equal, 3.0),
            },
        )
        made.inputs.add(
            step, sites, {"rms": np.ones(len(sites)), "constant": by_site(constant, 0.0), "zeros": np.zeros(len(sites))}
        )
    return made


def found(made: Context, select: str) -> list[Finding]:
    return Diagnosis(Diagnose(select=select)).look(made)


def rows(share: float) -> np.ndarray:
    """[looks, 8]: the first rows are silent at each look."""
    return np.tile(np.arange(8) < 8 * share, (len(STEPS), 1)).astype(float)


def test_a_layer_of_dead_units_is_named_since_the_first_step():
    (finding,) = found(
        context({"a.weight": rows(0), "b.weight": rows(1), "c.weight": rows(0)}, constant={"c.weight": 1.0}), "GL401"
    )
    assert (finding.sites, finding.severity, finding.first_step) == (("b.weight",), "error", 0)
    assert "100% of the units of b are dead" in finding.message and "since the first step" in finding.message


def test_units_that_die_later_are_dated_and_blamed_on_the_step():
    silent = rows(1)
    silent[:3] = 0
    (finding,) = found(context({"b.weight": silent, "c.weight": rows(0)}, constant={"c.weight": 1.0}), "GL401")
    assert finding.first_step == STEPS[3] and "learning rate" in finding.remedy


def test_other_units_at_each_look_are_sparse_and_not_dead():
    sparse = np.ones((len(STEPS), 8))
    sparse[np.arange(len(STEPS)), np.arange(len(STEPS)) % 8] = 0
    assert found(context({"b.weight": sparse, "c.weight": rows(0)}, constant={"c.weight": 1.0}), "GL401") == []


def test_silent_units_whose_output_varies_are_not_dead():
    silent = {f"experts.{number}.weight": rows(number != 2) for number in range(4)}
    assert found(context(silent), "GL401") == []
    assert found(context({"body.weight": rows(0), "outputs.weight": rows(0.75)}), "GL401") == []


def test_dead_branches_beside_a_sum_are_told_where_all_of_them_are():
    silent = {
        "stem.weight": rows(0),
        "blocks.0.fc.weight": rows(1),
        "blocks.1.fc.weight": rows(1),
        "head.weight": rows(0),
    }
    (finding,) = found(context(silent), "GL401")
    assert finding.sites == ("blocks.0.fc.weight", "blocks.1.fc.weight")


def test_two_layers_of_zeros_in_a_row_are_stuck_and_one_is_not():
    zeros = {"b.weight": 0.0, "c.weight": 0.0}
    silent = {site: rows(0) for site in ("a.weight", "b.weight", "c.weight")}
    (finding,) = found(context(silent, weights=zeros, gradients=zeros), "GL403")
    assert finding.sites == ("b.weight", "c.weight")
    assert found(context(silent, weights=zeros), "GL403") == []


def test_equal_rows_that_move_alike_are_symmetric_and_parting_rows_are_not():
    silent = {site: rows(0) for site in ("a.weight", "b.weight")}
    (finding,) = found(context(silent, equal={"a.weight": 0.0}), "GL404")
    assert finding.sites == ("a.weight",) and "all units of a are the same" in finding.message
    assert found(context(silent, equal={"a.weight": 0.0}, gradients={"a.weight": 0.0}), "GL404") == []
    assert found(context(silent), "GL404") == []


@pytest.mark.parametrize("code", ["GL401", "GL403", "GL404"])
def test_nothing_is_said_without_the_signal(code: str):
    assert found(Context(step=100), code) == []


# Real trainings.


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def conv() -> nn.Module:
    pool = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU(), *pool)


def findings(model: nn.Module, steps: int = 32) -> list[Finding]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradlab.watch(
        model, optimizer, taps=[Tap("*", of="weight_grad")], strict=True, diagnose=Diagnose(select=CODES)
    ) as monitor:
        for _ in range(steps):
            x = torch.randn(32, 6)
            optimizer.zero_grad()
            F.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()).backward()
            optimizer.step()
    return list(monitor.findings)


def roots(model: nn.Module, steps: int = 32) -> list[tuple[str, str]]:
    return [(one.code, one.sites[0]) for one in findings(model, steps) if one.explained_by is None]


@pytest.mark.parametrize(("make", "layer"), [(mlp, "2"), (conv, "3"), (Residual, "blocks.0.0")])
def test_a_layer_that_starts_dead_is_the_only_root(make, layer: str):
    torch.manual_seed(0)
    model = make()
    for name, module in model.named_modules():
        if name == layer or (isinstance(model, Residual) and name == "blocks.1.0"):
            nn.init.constant_(module.bias, -20.0)
    assert roots(model)[:1] == [("GL401", f"{layer}.weight")]


@pytest.mark.parametrize(("make", "layers"), [(mlp, ("2", "4")), (conv, ("3", "7")), (mlp, ("0", "2"))])
def test_layers_of_zeros_are_the_only_root(make, layers: tuple[str, ...]):
    torch.manual_seed(0)
    model = make()
    for name in layers:
        for p in model.get_submodule(name).parameters():
            nn.init.zeros_(p)
    assert roots(model, 12) == [("GL403", f"{layers[0]}.weight")]


@pytest.mark.parametrize(("make", "layer"), [(mlp, "0"), (conv, "1")])
def test_equal_weights_are_the_only_root(make, layer: str):
    torch.manual_seed(0)
    model = make()
    for p in model.parameters():
        nn.init.constant_(p, 0.1 if p.dim() > 1 else 0.0)
    assert roots(model, 12) == [("GL404", f"{layer}.weight")]


@pytest.mark.parametrize("make", [mlp, conv, Residual])
def test_healthy_training_is_silent(make):
    torch.manual_seed(0)
    assert findings(make()) == []


def test_heads_and_branches_of_zeros_are_healthy():
    torch.manual_seed(0)
    model = Residual()
    for module in (model.head, *(block[2] for block in model.blocks)):
        nn.init.zeros_(module.weight)
    assert findings(model) == []
