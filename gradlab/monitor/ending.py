"""The end of a training in a plain loop, on the terminal.

Belongs here: what is taken from a monitor for it. Does not: how it is printed (`summary.terminal`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from gradlab.finding import Finding
from gradlab.frame import Series
from gradlab.sinks.scalars import present_numbers
from gradlab.summary.layer_table import layer_table
from gradlab.summary.terminal import print_end


def print_training_end(
    model: nn.Module,
    latest: Mapping[str, Series],
    findings: Sequence[Finding],
    *,
    num_steps: int,
    logdir: Path,
    precision: torch.dtype | str | None,
) -> None:
    """Print the table of layers, the findings, and the command that opens the board, to stderr.

    Args:
        model: the model inside its wrappers.
        latest: the newest series of every metric.
        findings: those of the training.
        num_steps: how many steps it had.
        logdir: where its event file is.
        precision: in which matrices were multiplied, as far as that is known.
    """
    dtype = precision if isinstance(precision, torch.dtype) else None
    print_end(
        type(model).__name__,
        layers=layer_table(model, present_numbers(latest), findings, precision=dtype),
        findings=findings,
        num_steps=num_steps,
        logdir=logdir,
        file=sys.stderr,
    )
