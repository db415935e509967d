"""What an epoch has gathered so far and Lightning keeps in no checkpoint.

All of it can reach the weights: gradients of an accumulation, and the means of logged values and torchmetrics' states,
which a schedule or an early stop may watch. A schedule that waits for a plateau steps after the checkpoint of an epoch
is written, so a run that goes on from there makes that step up.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric

Gathered = dict[str, Any]


def gathered(trainer: pl.Trainer, metrics: Gathered | None = None, *, ended: bool) -> Gathered:
    """What the epoch that is under way has gathered.

    Args:
        trainer: the trainer.
        metrics: takes the place of the states that metrics have now.
        ended: whether the epoch is over; Lightning is about to reset the metrics that were logged.
    """
    metrics = metrics if metrics is not None else metric_states(trainer.lightning_module)
    logged = _logged_metrics(trainer) if ended else set()
    return {
        "gradients": _gradients(trainer),
        "means": {} if ended else _means(trainer),
        "metrics": {name: state for name, state in metrics.items() if name not in logged},
        "plateaus": _plateaus(trainer),
    }


def give_back(trainer: pl.Trainer, saved: Gathered) -> None:
    """Put back what `gathered` gave, but for means, once the optimizers exist and before the first batch."""
    module = trainer.lightning_module
    for name, parameter in module.named_parameters():
        if name in saved["gradients"]:
            parameter.grad = saved["gradients"][name].to(parameter.device)
    for name, metric in _metrics(module):
        if name in saved["metrics"]:
            count, states = saved["metrics"][name]
            metric._update_count = count
            for state, value in states.items():
                setattr(metric, state, _to(value, metric.device))
    for index, value in saved["plateaus"].items():
        module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)


def add_means(trainer: pl.Trainer, saved: Gathered) -> None:
    """Add the values that were logged earlier in the epoch to those of its first batch since."""
    results = trainer.fit_loop.epoch_loop._results
    for key, (_, value, weight) in saved.items():
        metric = results.get(key)
        if metric is None or value is None:
            continue
        value = value.to(metric.value.device)
        if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
            metric.value = metric.meta.reduce_fx(metric.value, value)
        elif metric.meta.is_mean_reduction or metric.meta.is_sum_reduction:
            metric.value = value + metric.value
        if metric.meta.is_mean_reduction:
            metric.cumulated_batch_size = weight.to(metric.value.device) + metric.cumulated_batch_size


def log_means(trainer: pl.Trainer, saved: Gathered) -> None:
    """Log the values of an epoch of which no batch is left."""
    module, results = trainer.lightning_module, trainer.fit_loop.epoch_loop._results
    for key, (fields, value, weight) in saved.items():
        meta = _Metadata(**fields["meta"])
        meta.sync = _Sync(fn=trainer.strategy.reduce, **fields["sync"])
        metric = _ResultMetric(meta, is_tensor=value is not None).to(module.device)
        if value is not None:
            metric.value = value.to(module.device)
            if meta.is_mean_reduction:
                metric.cumulated_batch_size = weight.to(module.device)
        else:
            metric.value = module.get_submodule(meta.metric_attribute or "")
        results[key] = metric


def metric_states(module: pl.LightningModule) -> Gathered:
    """What the torchmetrics of a module have counted."""
    return {name: (metric._update_count, _copied(metric.metric_state)) for name, metric in _metrics(module)}


def _metrics(module: pl.LightningModule) -> list[tuple[str, Metric]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, Metric)]


def _gradients(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The gradients that the next batch adds to; with manual optimization any may be one of these."""
    module = trainer.lightning_module
    if module.automatic_optimization and not trainer.fit_loop._should_accumulate():
        return {}
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def _means(trainer: pl.Trainer) -> Gathered:
    """Logged values that are reduced over the epoch: how each is logged, its value and the samples behind it."""
    means: Gathered = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        if metric.is_tensor and not metric.meta.on_epoch:
            continue  # a metric that was logged is reset at the end of the epoch in any case
        fields = {
            "meta": {field.name: getattr(metric.meta, field.name) for field in dataclasses.fields(metric.meta)},
            "sync": {"_should": metric.meta.sync.should, "rank_zero_only": metric.meta.sync.rank_zero_only},
        }
        del fields["meta"]["_sync"]
        weight = torch.as_tensor(getattr(metric, "cumulated_batch_size", 0)).clone()
        means[key] = (fields, metric.value.detach().clone() if metric.is_tensor else None, weight)
    return means


def _logged_metrics(trainer: pl.Trainer) -> set[str]:
    """The torchmetrics that were logged, which Lightning resets at the end of an epoch, by name."""
    logged = {id(metric.value) for metric in trainer.fit_loop.epoch_loop._results.values() if not metric.is_tensor}
    return {name for name, metric in _metrics(trainer.lightning_module) if id(metric) in logged}


def _plateaus(trainer: pl.Trainer) -> dict[int, Any]:
    """What the schedules that wait for a plateau will be given when this epoch is over, by their index."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if epochs.processed == epochs.completed:
        return {}
    return {
        index: trainer.callback_metrics[config.monitor].detach().clone()
        for index, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and epochs.processed % config.frequency == 0
        and config.monitor in trainer.callback_metrics
        and trainer.lightning_module.automatic_optimization
    }


def _copied(states: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [_clone(v) for v in value] if isinstance(value, list) else _clone(value) for name, value in states.items()
    }


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value
