"""Kinds of arguments that are objects of torch: models, optimizers, a GradScaler, tensors.

Belongs here: what of torch's may be given, and the fix for a common mistake. Does not: other kinds, which
`gradlab.arguments` has, since that is imported where torch is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradlab.arguments import Kind, is_listed
from gradlab.optimizers import inner_optimizer


def _model(value: Any) -> nn.Module:
    if isinstance(value, nn.Module):
        return value
    raise TypeError


def _fix_model(value: Any) -> str:
    if isinstance(value, type):
        return f"Make one of it first: {value.__name__}(...)."
    if isinstance(value, Optimizer):
        return "Are model and optimizer swapped? The model comes first."
    return "A function can be called in the forward of a module." if callable(value) else ""


def _optimizer(value: Any) -> Any:
    """An optimizer, or anything else that steps: which of its steps counts is found out by `monitor.steps`."""
    is_other = isinstance(value, type | nn.Module | LRScheduler)
    if is_other or not callable(getattr(inner_optimizer(value), "step", None)):
        raise TypeError
    return value


def _optimizers(value: Any) -> Any:
    if not is_listed(value):
        return _optimizer(value)
    several = tuple(value)
    return tuple(map(_optimizer, several)) if several else None


def _fix_optimizer(value: Any) -> str:
    if isinstance(value, type):
        return f"Make one of it first: {value.__name__}(model.parameters(), ...)."
    if isinstance(value, nn.Module):
        return "Are model and optimizer swapped? The model comes first."
    if isinstance(value, LRScheduler):
        return "Give its optimizer."
    if isinstance(value, dict):
        return "Give its values, as a list."
    if is_listed(value):
        return "Give the optimizers that were made from them."
    return ""


def _scaler(value: Any) -> Any:
    if isinstance(value, type) or not (callable(getattr(value, "is_enabled", None)) and hasattr(value, "scale")):
        raise TypeError
    return value


def _tensor(value: Any) -> Any:
    if isinstance(value, Tensor) or hasattr(type(value), "__torch_function__"):
        return value
    raise TypeError


def _inputs(value: Any) -> Any:
    """What a forward may be called with: any object of the user's own, but none that only a mistake can be."""
    if value is None or isinstance(value, str | bytes | int | float | np.ndarray | np.generic | type | nn.Module):
        raise TypeError
    return value


def _matrix(value: Any) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.tensor(value)
    except RuntimeError:
        raise TypeError from None


MODEL = Kind("a torch.nn.Module", _model, _fix_model)
OPTIMIZER = Kind("an optimizer", _optimizer, _fix_optimizer)
OPTIMIZERS = Kind("an optimizer or a list of them", _optimizers, _fix_optimizer)
SCALER = Kind("a torch.amp.GradScaler", _scaler, lambda value: "It is found by itself; scaler may be left out.")
TENSOR = Kind("a tensor", _tensor)
INPUTS = Kind(
    "a tensor, a tuple of arguments or a mapping of keyword arguments",
    _inputs,
    lambda value: "torch.tensor(...) makes a tensor of it." if isinstance(value, np.ndarray) else "",
)
MATRIX = Kind("a tensor or rows of numbers", _matrix)
