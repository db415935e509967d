"""Optimizers inside the wrappers that frameworks put around them."""

from __future__ import annotations

from typing import Any

_WRAPPERS = {"AcceleratedOptimizer", "_FabricOptimizer", "LightningOptimizer"}
"""Classes whose attribute `optimizer` is the one that steps; hooks on the wrapper would never run."""


def inner_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside any wrappers of Accelerate, Fabric and Lightning."""
    while any(cls.__name__ in _WRAPPERS for cls in type(optimizer).__mro__) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
