"""The results of one watched model, and how many steps several of them make together.

Belongs here: what is taken from a monitor when it closes. Does not: where it is written (`report`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gradlab.finding import Finding
from gradlab.monitor.monitor import Monitor
from gradlab.sinks.scalars import present_numbers
from gradlab.summary.layer_table import Layer, layer_table


@dataclass(frozen=True, kw_only=True)
class ModelResults:
    """What is reported of one model once its training has ended, as plain values: they keep no model alive."""

    label: str
    """The model's name, where a process trains several."""
    steps: int
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    abstained: Mapping[str, str] = field(default_factory=dict)
    """By code of each rule that could not tell when it was last asked: what was missing."""
    began: float = 0.0
    ended: float = 0.0
    """When its training began and ended, in seconds of the monotonic clock."""


def total_steps(models: Sequence[ModelResults]) -> int:
    """How many steps a process has trained: the sum over models in turn; those that train together step together.

    A generator and its critic with 40 steps each are 40 steps, three folds of 10 steps are 30.
    """
    total, together, until = 0, 0, -1.0
    for one in sorted(models, key=lambda one: one.began):
        if one.began >= until:
            total, together = total + together, 0
        together, until = max(together, one.steps), max(until, one.ended)
    return total + together


def results_of(monitor: Monitor, label: str, began: float, before: ModelResults | None = None) -> ModelResults:
    """What a monitor knows at its end.

    Args:
        monitor: closed.
        label: what the model is called.
        began: when it was watched for the first time.
        before: the results of the model when an earlier optimizer of it was gone.
    """
    latest = present_numbers(monitor.latest())
    findings = (*(before.findings if before else ()), *monitor.findings)
    precision = monitor.matrix_precision
    dtype = precision if isinstance(precision, torch.dtype) else None
    layers = tuple(layer_table(monitor.inner, latest, findings, precision=dtype))
    return ModelResults(
        label=label,
        steps=monitor.step,
        layers=layers,
        findings=findings,
        abstained=monitor.abstained,
        began=began,
        ended=time.monotonic(),
    )
