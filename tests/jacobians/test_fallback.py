"""Engines in turn: one that fails is not tried again, and less is computed at once where memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradlab
from gradlab.jacobians.engines import fallback
from gradlab.jacobians.engines.problem import Problem
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.replayed import ReplayedSlice

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    MODEL = nn.Sequential(nn.Linear(50, 60), nn.GELU(), nn.Linear(60, 40)).double()
X = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_an_engine_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def failing(problem: Problem) -> torch.Tensor:
        tried.append(1)
        raise NotImplementedError("no batching rule")

    monkeypatch.setitem(fallback.ENGINES, "vmap", failing)
    probe = ReplayedSlice(JacobianSlice(of="output", wrt="input"), MODEL, X)
    blocks = [probe.measure(step) for step in range(3)]
    assert len(tried) == 1
    assert {block.engine for block in blocks} == {"is_grads_batched"}
    assert {block.notes for block in blocks} == {("vmap refused: NotImplementedError: no batching rule",)}


def test_exhausted_memory_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    vmap = fallback.ENGINES["vmap"]

    def small(problem: Problem) -> torch.Tensor:
        tried.append(problem.chunk)
        if problem.chunk > 10:
            raise torch.OutOfMemoryError("out of memory")
        return vmap(problem)

    monkeypatch.setitem(fallback.ENGINES, "vmap", small)
    block = gradlab.jacobian(MODEL, X[:1], rows=40, chunk=64)
    assert tried == [64, 20, 10]
    np.testing.assert_allclose(block.values, gradlab.jacobian(MODEL, X[:1], rows=40, engine="loop").values, atol=1e-14)


def test_memory_that_does_not_suffice_for_one_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(problem: Problem) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setitem(fallback.ENGINES, "vmap", never)
    with pytest.raises(gradlab.GradlabError, match=r"memory does not suffice for one row .*give fewer samples"):
        gradlab.jacobian(MODEL, X, rows=3)


def test_a_probe_batch_larger_than_memory_is_an_error() -> None:
    class Hungry(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(gradlab.GradlabError, match="does not fit in memory; give fewer than these 5 samples"):
        gradlab.jacobian(Hungry(3, 3), torch.randn(5, 3))
