"""Sinks for the experiment trackers that a script uses already: no tracker is ever imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gradlab.sinks.callback import CallbackSink
from gradlab.sinks.scalars import Scalars, check_scalars


def sinks_of_trackers(scalars: Scalars = "few") -> list[CallbackSink]:
    """A sink for each tracker that is imported and has a run open: W&B, MLflow, Trackio, SwanLab, Comet.

        gradlab.watch(model, optimizer, sinks=gradlab.sinks.sinks_of_trackers())

    W&B gets the newest numbers with the script's own next `wandb.log`, since steps that go back would lose the
    script's; the others get every number at its step, and go on counting the script's own steps as they did.
    """
    check_scalars(scalars)
    found = []
    for name, find in _FINDERS.items():
        module = sys.modules.get(name)
        function = find(module) if module is not None else None
        if function is not None:
            found.append(CallbackSink(function, scalars=scalars, name=name, prompt=name == "wandb"))
    return found


Log = Callable[[dict[str, float], int], Any]


def _wandb(module: Any) -> Log | None:
    if getattr(module, "run", None) is None:
        return None
    return lambda values, step: module.log({**values, "gradlab/step": step}, commit=False)


def _mlflow(module: Any) -> Log | None:
    if module.active_run() is None:
        return None
    return lambda values, step: module.log_metrics(values, step=step)


def _trackio(module: Any) -> Log | None:
    run = module.context_vars.current_run.get()
    if run is None:
        return None
    return _counting_as_before(run, "_next_step", lambda values, step: module.log(values, step=step))


def _swanlab(module: Any) -> Log | None:
    has_run = module.has_run() if hasattr(module, "has_run") else module.get_run() is not None
    if not has_run:
        return None
    context = getattr(module.get_run(), "_ctx", None)
    return _counting_as_before(context, "_global_step", lambda values, step: module.log(values, step=step))


def _comet(module: Any) -> Log | None:
    experiment = module.get_running_experiment()
    if experiment is None:
        return None
    return _counting_as_before(experiment, "curr_step", lambda values, step: experiment.log_metrics(values, step=step))


def _counting_as_before(owner: Any, count: str, log: Log) -> Log:
    """`log`, and then the tracker's own count of the script's steps as it was: a given step would move it."""

    def logged(values: dict[str, float], step: int) -> None:
        has_count = hasattr(owner, count)
        before = getattr(owner, count, None)
        log(values, step)
        if has_count:
            setattr(owner, count, before)

    return logged


_FINDERS: dict[str, Callable[[Any], Log | None]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "swanlab": _swanlab,
    "comet_ml": _comet,
}
