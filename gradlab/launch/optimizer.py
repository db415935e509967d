"""An experiment's optimizer in the place of the model's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch import optim


def use_optimizer(model: pl.LightningModule, make_optimizer: Callable[[Any], optim.Optimizer]) -> None:
    """Make `model.configure_optimizers` return `make_optimizer(parameters that require grad)`.

    A `partial` of a function of this module: pickle finds it by name, a deep copy of the model configures itself, and
    Lightning, which looks through partials, sees that the method is overridden.
    """
    model.configure_optimizers = partial(_configure_optimizers, model, make_optimizer)  # type: ignore[method-assign]


def _configure_optimizers(
    model: pl.LightningModule, make_optimizer: Callable[[Any], optim.Optimizer]
) -> optim.Optimizer:
    return make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
