"""What is measured when, on which probe batch, and what becomes of it where it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab.errors import GradlabWarning
from gradlab.jacobians.options import DepthGrowth, JacobianSlice
from gradlab.sinks import MemorySink


def run(specs: list[Any], steps: int = 4, **options: Any) -> list[tuple[int, str]]:
    torch.manual_seed(0)
    model, sink = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), MemorySink(last=100)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer, taps=[], jacobians=specs, sinks=[sink], **options):
        for _ in range(steps):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
    return [(step, block.name) for step, block in sink.blocks]


def test_each_on_its_steps() -> None:
    specs = [
        JacobianSlice(of="output", wrt="input", every=2),
        JacobianSlice(of="output", wrt="0", every=3, label="b", block=False),
    ]
    assert run(specs) == [
        (0, "output__wrt__input"),
        (0, "output__wrt__0@b"),
        (2, "output__wrt__input"),
        (3, "output__wrt__0@b"),
    ]


def test_several_probe_batches() -> None:
    specs = [JacobianSlice(of="output", wrt="input", every=2, samples=2, probe=name) for name in ("train", "hard")]
    names = [name for _, name in run(specs, probe={"hard": torch.randn(5, 4)})]
    assert names == ["output__wrt__input", "output__wrt__input@hard"] * 2


def test_a_probe_batch_that_never_comes_measures_nothing() -> None:
    assert run([JacobianSlice(of="output", wrt="input", every=1, probe="validation")]) == []


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (JacobianSlice(of="output", wrt="input", every=1), {}, "no probe batch: the model itself was not called"),
        (JacobianSlice(of="output", wrt="input", every=1, mode="live"), {}, "no forward of the whole model"),
        (
            JacobianSlice(of="output", wrt="input", every=1, probe="hrad"),
            {"probe": {"hard": torch.randn(2, 4)}},
            "there is no probe batch 'hrad'. Did you mean 'hard'?",
        ),
    ],
)
def test_what_can_never_be_measured_is_reported_once(spec: JacobianSlice, options: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(GradlabWarning, match="was switched off") as caught:
        monitor = gradlab.watch(model, optimizer, taps=[], jacobians=[spec], **options)
        for _ in range(3):
            model[0](torch.randn(2, 4)).sum().backward()
            optimizer.step()
        monitor.close()
    assert [message in str(w.message) for w in caught] == [True]


def test_models_of_several_arguments_and_of_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Bilinear(2, 3, 4)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.a(left, right)

    for call in (lambda m, x, y: m(x, y), lambda m, x, y: m(left=x, right=y)):
        model, sink = Two(), MemorySink()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        spec = JacobianSlice(of="output", wrt="input[1]", every=1)
        with gradlab.watch(model, optimizer, taps=[], jacobians=[spec], sinks=[sink], strict=True):
            call(model, torch.randn(5, 2), torch.randn(5, 3)).sum().backward()
            optimizer.step()
        assert [block.values.shape for _, block in sink.blocks] == [(4, 3)]


def test_one_that_fails_is_switched_off_and_the_others_go_on() -> None:
    bad = DepthGrowth(at="nothing", every=1)
    with pytest.warns(GradlabWarning, match="the depth growth of 'output' by 'input' was switched off") as caught:
        found = run([bad, JacobianSlice(of="output", wrt="input", every=1)])
    assert len(found) == 4
    assert len(caught) == 1


def test_a_very_large_block_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlab.jacobians.scheduled._LARGE_BYTES", 40)
    with pytest.warns(
        GradlabWarning, match=r"'output' by 'input' has 3 x 4 entries, 0 MiB on each of its steps"
    ) as caught:
        run([JacobianSlice(of="output", wrt="input", every=1)])
    assert len(caught) == 1
