"""Depth growth: exact against the product of Jacobians, and the view that separates a good start from a bad one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab.errors import JacobianError
from gradlab.jacobians.options import DepthGrowth
from gradlab.sinks import MemorySink


def deep(layers: int, width: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)]).double()


def test_all_directions_together_are_the_determinant() -> None:
    model, x = deep(6, 9), torch.randn(2, 9, dtype=torch.float64)
    growth = gradlab.depth_growth(model, x, at=["?"], directions=9)
    jacobian = gradlab.jacobian(model, x[:1]).values
    assert growth.values.sum() == pytest.approx(np.linalg.slogdet(jacobian)[1], rel=1e-6)
    assert growth.row_names == ("input", "0", "1", "2", "3", "4", "5")
    assert growth.audit_error < 1e-12
    assert (growth.kind, growth.name) == ("depth_growth", "output__growth__input")


def test_each_row_equals_an_explicit_qr_walk() -> None:
    model, x = deep(4, 7), torch.randn(1, 7, dtype=torch.float64)
    growth = gradlab.depth_growth(model, x, at=["?"], directions=3, seed=4)
    steps = [gradlab.jacobian(model, x, of=str(i), wrt="input" if i == 0 else str(i - 1)).values for i in range(4)]
    start = torch.randn(7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    q = np.linalg.qr(np.linalg.qr(start.numpy())[0])[0]
    rows = []
    for matrix in reversed(steps):
        q, r = np.linalg.qr(matrix.T @ q)
        rows.append(np.log(np.abs(np.diag(r))))
    np.testing.assert_allclose(growth.values, [*rows[::-1], np.zeros(3)], rtol=1e-5, atol=1e-7)


def test_the_view_separates_orthogonal_from_gaussian_weights() -> None:
    from gradlab.models import MLP

    found = {}
    for init in ("orthogonal", "gaussian"):
        torch.manual_seed(0)
        model = MLP([64] * 24, activation="tanh", init=init)
        growth = gradlab.depth_growth(
            model, 0.1 * torch.randn(4, 64), at="layers.*.linear", of="features", directions=16, samples=4
        )
        found[init] = growth.summaries
    assert abs(found["orthogonal"]["mean"]) < 0.05
    assert found["gaussian"]["log_cond"] > 5 * found["orthogonal"]["log_cond"]
    assert found["gaussian"]["spread"] > 3 * found["orthogonal"]["spread"]


def test_the_mean_over_samples_and_fewer_entries_than_directions() -> None:
    model, x = deep(3, 5), torch.randn(3, 5, dtype=torch.float64)
    both = gradlab.depth_growth(model, x, at="?", directions=9, samples=2)
    assert both.values.shape == (4, 5)
    assert both.notes == ("mean over 2 samples", "5 directions, since a site has no more entries")
    one = gradlab.depth_growth(model, x[:1], at="?", directions=9)
    other = gradlab.depth_growth(model, x[1:2], at="?", directions=9, seed=1)
    np.testing.assert_allclose(both.values, (one.values + other.values) / 2, rtol=1e-5, atol=1e-7)


class Branch(nn.Module):
    """A residual block whose inner layer is not on every path."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.inner(x))


def test_a_residual_stream_is_measured_and_a_branch_refused() -> None:
    model, x = Branch().double(), torch.randn(1, 5, dtype=torch.float64)
    assert gradlab.depth_growth(model, x, at="/add").audit_error < 1e-12
    with pytest.raises(JacobianError, match=r"the sites inner do not all lie on every path from 'output' to 'input'"):
        gradlab.depth_growth(model, x, at="inner")


def test_replicas_that_meet_or_differ_are_refused() -> None:
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    with pytest.raises(JacobianError, match=r"samples influence one another|replicas of one sample differ|is zero"):
        gradlab.depth_growth(norm, torch.randn(3, 4), at="?", mode="as_is")
    assert gradlab.depth_growth(norm, torch.randn(3, 4), at="?").audit_error < 1e-5
    dropout = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 4))
    with pytest.raises(JacobianError, match="replicas of one sample differ"):
        gradlab.depth_growth(dropout, torch.randn(3, 4), at="?", mode="as_is")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "nothing*"}, "at='nothing*' matches no site between 'input' and 'output'."),
        ({"at": "?", "of": "oputput"}, "of='oputput' is no site here. Did you mean 'output'?"),
        ({"at": "?", "samples": 5}, "at least 5 samples, got 1"),
        ({"at": "?", "directions": 0}, "directions must be a whole number from 1, got 0."),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(JacobianError) as caught:
        gradlab.depth_growth(deep(2, 4), torch.randn(1, 4, dtype=torch.float64), **options)
    assert message in str(caught.value)


def test_it_is_logged_every_so_many_steps_without_disturbing_training() -> None:
    def train(specs: list[DepthGrowth]) -> tuple[dict[str, Tensor], MemorySink]:
        torch.manual_seed(0)
        model, sink = deep(3, 6), MemorySink()
        optimizer = torch.optim.Adam(model.parameters())
        with gradlab.watch(model, optimizer, taps=[], jacobians=specs, sinks=[sink], strict=True):
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.randn(4, 6).double()).square().sum().backward()
                optimizer.step()
        return model.state_dict(), sink

    plain, _ = train([])
    watched, sink = train([DepthGrowth(at="?", every=2, samples=2, label="all")])
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert [(step, block.name) for step, block in sink.blocks] == [(n, "output__growth__input@all") for n in (0, 2, 4)]
