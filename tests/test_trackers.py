"""Sinks for trackers: only for those that are imported and have a run open; none is ever imported."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gradlab.sinks import sinks_of_trackers
from gradlab.sinks.imported import _FINDERS


@pytest.fixture(autouse=True)
def no_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is imported."""
    for name in _FINDERS:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_where_no_tracker_is_imported_there_are_no_sinks() -> None:
    assert sinks_of_trackers() == []
    assert not [name for name in _FINDERS if name in sys.modules]


def test_wandb_gets_numbers_without_a_step_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    wandb = SimpleNamespace(run=None, log=lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert sinks_of_trackers() == []
    wandb.run = object()
    (sink,) = sinks_of_trackers()
    sink.scalars({"a": 1.0}, 7, 0.0)
    assert sink.name == "wandb"
    assert calls == [(({"a": 1.0, "gradlab/step": 7},), {"commit": False})]


def test_mlflow_gets_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    log_metrics = lambda values, step: calls.append((values, step))  # noqa: E731
    mlflow = SimpleNamespace(active_run=lambda: object(), log_metrics=log_metrics)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (sink,) = sinks_of_trackers()
    sink.scalars({"a": 1.0}, 7, 0.0)
    assert calls == [({"a": 1.0}, 7)]
