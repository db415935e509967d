"""Sinks for trackers: only for those that are imported and have a run open; none is ever imported."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gradlab
from gradlab.sinks import sinks_of_trackers
from gradlab.sinks.trackers import _FINDERS


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


def test_trackio_gets_the_step_and_goes_on_counting_as_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(_next_step=3)
    calls: list[Any] = []

    def log(values: dict[str, float], step: int) -> None:
        calls.append((values, step))
        run._next_step = max(run._next_step, step + 1)

    current: list[Any] = [None]
    variable = SimpleNamespace(get=lambda: current[0])
    trackio = SimpleNamespace(log=log, context_vars=SimpleNamespace(current_run=variable))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    assert sinks_of_trackers() == []
    current[0] = run
    (sink,) = sinks_of_trackers()
    sink.scalars({"a": 1.0}, 7, 0.0)
    assert calls == [({"a": 1.0}, 7)] and run._next_step == 3


def test_swanlab_says_by_an_error_that_it_has_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(_global_step=-1)
    calls: list[Any] = []

    def get_run() -> Any:
        if not calls:
            raise RuntimeError("No active Run. Call swanlab.init() first.")
        return SimpleNamespace(_ctx=context)

    def log(values: dict[str, float], step: int) -> None:
        calls.append((values, step))
        context._global_step = step

    swanlab = SimpleNamespace(has_run=lambda: bool(calls), get_run=get_run, log=log)
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    assert sinks_of_trackers() == []
    calls.append("begun")
    (sink,) = sinks_of_trackers()
    sink.scalars({"a": 1.0}, 7, 0.0)
    assert calls[1:] == [({"a": 1.0}, 7)] and context._global_step == -1


def test_comet_keeps_the_step_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = SimpleNamespace(curr_step=None)

    def log_metrics(values: dict[str, float], step: int) -> None:
        experiment.curr_step = step
        experiment.logged = (values, step)

    experiment.log_metrics = log_metrics
    running: list[Any] = [None]
    comet = SimpleNamespace(get_running_experiment=lambda: running[0])
    monkeypatch.setitem(sys.modules, "comet_ml", comet)
    assert sinks_of_trackers() == []
    running[0] = experiment
    (sink,) = sinks_of_trackers()
    sink.scalars({"a": 1.0}, 7, 0.0)
    assert experiment.logged == ({"a": 1.0}, 7) and experiment.curr_step is None


def test_each_row_of_wandb_has_the_numbers_of_its_step_however_short_steps_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B keeps one row, to which each call adds, until the script's own call ends it."""
    rows: list[dict[str, float]] = []
    row: dict[str, float] = {}

    def log(values: dict[str, float], commit: bool = True) -> None:
        row.update(values)
        if commit:
            rows.append(dict(row))
            row.clear()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object(), log=log))
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer, sinks=sinks_of_trackers(), performance=False):
        for step in range(40):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            log({"script": step})
    assert [row["gradlab/step"] for row in rows] == [row["script"] for row in rows] == list(range(40))


FOUND = gradlab.Finding(code="GL201", name="n", key="2: b", first_step=3, message="two softmaxes.", remedy="Drop one.")
KEY, LINE = "gradlab/GL201/2_ b", "warning GL201 since step 3: two softmaxes. Drop one."


def of_wandb(calls: list[Any]) -> Any:
    return SimpleNamespace(run=SimpleNamespace(summary=SimpleNamespace(update=calls.append)), log=lambda *_, **__: None)


def of_mlflow(calls: list[Any]) -> Any:
    return SimpleNamespace(active_run=object, set_tag=lambda key, line: calls.append({key: line}))


def of_trackio(calls: list[Any]) -> Any:
    variable = SimpleNamespace(get=lambda: SimpleNamespace(_next_step=0))
    alert = lambda title, text: calls.append({title: text})  # noqa: E731
    return SimpleNamespace(context_vars=SimpleNamespace(current_run=variable), alert=alert)


def of_swanlab(calls: list[Any]) -> Any:
    log = lambda values, step: calls.append(values)  # noqa: E731
    return SimpleNamespace(has_run=lambda: True, get_run=lambda: SimpleNamespace(), Text=str, log=log)


def of_comet(calls: list[Any]) -> Any:
    experiment = SimpleNamespace(curr_step=None, log_other=lambda key, line: calls.append({key: line}))
    return SimpleNamespace(get_running_experiment=lambda: experiment)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("wandb", of_wandb),
        ("mlflow", of_mlflow),
        ("trackio", of_trackio),
        ("swanlab", of_swanlab),
        ("comet_ml", of_comet),
    ],
)
def test_each_tracker_gets_one_line_a_finding(monkeypatch: pytest.MonkeyPatch, name: str, make: Any) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, name, make(calls))
    (sink,) = sinks_of_trackers()
    sink.finding(FOUND, 0.0)
    sink.finding(FOUND, 1.0)
    assert calls == [{KEY: LINE}]
