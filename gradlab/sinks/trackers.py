"""Sinks for the experiment trackers that a script uses already: no tracker is ever imported here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from gradlab.finding import Finding
from gradlab.sinks.callback import CallbackSink
from gradlab.sinks.finding_log import finding_line, first_and_worse
from gradlab.sinks.scalars import Scalars, check_scalars


def sinks_of_trackers(scalars: Scalars = "few") -> list[CallbackSink]:
    """A sink for each tracker that is imported and has a run open: W&B, MLflow, Trackio, SwanLab, Comet.

        gradlab.watch(model, optimizer, sinks=gradlab.sinks.sinks_of_trackers())

    Each gets a line for each finding, too: W&B in the run's summary, MLflow as a tag, Trackio as an alert, SwanLab as a
    text, Comet among its "others". W&B gets the newest numbers with the script's own next `wandb.log`, since steps that
    go back would lose the script's; the others get every number at its step, and go on counting the script's own steps
    as they did.
    """
    check_scalars(scalars)
    found = []
    for name, find in _FINDERS.items():
        module = sys.modules.get(name)
        function = find(module) if module is not None else None
        if function is not None:
            tell = _TELLERS[name](module)
            on_finding = first_and_worse(tell) if tell is not None else None
            is_prompt = name == "wandb"
            found.append(CallbackSink(function, on_finding=on_finding, scalars=scalars, name=name, prompt=is_prompt))
    return found


Log = Callable[[dict[str, Any], int], Any]


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


Tell = Callable[[Finding], Any]


def _key(finding: Finding) -> str:
    """The name of a finding's line: letters that every tracker takes."""
    name = "/".join(filter(None, ("gradlab", finding.code or finding.name, finding.key)))
    return re.sub(r"[^\w./ -]", "_", name)


def _tell_wandb(module: Any) -> Tell | None:
    summary = getattr(module.run, "summary", None)
    return None if summary is None else lambda one: summary.update({_key(one): finding_line(one)})


def _tell_mlflow(module: Any) -> Tell | None:
    set_tag = getattr(module, "set_tag", None)
    return None if set_tag is None else lambda one: set_tag(_key(one), finding_line(one))


def _tell_trackio(module: Any) -> Tell | None:
    alert = getattr(module, "alert", None)
    return None if alert is None else lambda one: alert(title=_key(one), text=finding_line(one))


def _tell_swanlab(module: Any) -> Tell | None:
    log, text = _swanlab(module), getattr(module, "Text", None)
    if log is None or text is None:
        return None
    return lambda one: log({_key(one): text(finding_line(one))}, one.first_step)


def _tell_comet(module: Any) -> Tell | None:
    log_other = getattr(module.get_running_experiment(), "log_other", None)
    return None if log_other is None else lambda one: log_other(_key(one), finding_line(one))


_TELLERS: dict[str, Callable[[Any], Tell | None]] = {
    "wandb": _tell_wandb,
    "mlflow": _tell_mlflow,
    "trackio": _tell_trackio,
    "swanlab": _tell_swanlab,
    "comet_ml": _tell_comet,
}
