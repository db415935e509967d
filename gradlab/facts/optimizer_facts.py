"""Optimizers as they are: settings, whose parameters they have, and which of them live.

Belongs here: reading them, without changing one. Does not: which of them are counted (`monitor.counted_optimizers`).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradlab.diagnose.context import OptimizerFacts
from gradlab.facts.gradient_resets import UNTIL, GradientResets
from gradlab.optimizers import parameters_of

_ADAPTIVE = ("Adam", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adafactor", "Lion", "Rprop", "Muon", "LAMB")


class WatchedOptimizer:
    """One optimizer that has stepped parameters of this training."""

    def __init__(self, optimizer: Any) -> None:
        self._ref = weakref.ref(optimizer)
        self.num_steps = 0
        self.last_step = -1
        self.resets = GradientResets(parameters_of(optimizer))

    @property
    def optimizer(self) -> Any:
        """The optimizer, or None where it is gone."""
        return self._ref()

    @property
    def was_written_to(self) -> bool:
        """Whether gradients were written to between the last backward and its last step, as by clipping."""
        return self.resets.was_written_to

    def before_backward(self) -> None:
        """A backward is about to add to gradients."""
        if self._is_watching():
            self.resets.before_backward()

    def after_backward(self) -> None:
        """A backward has added to them."""
        if self._is_watching():
            self.resets.after_backward()

    def before_update(self) -> None:
        """It is about to step."""
        if self._is_watching():
            self.resets.before_update()

    def after_update(self, step: int) -> None:
        """It has stepped."""
        self.num_steps, self.last_step = self.num_steps + 1, step
        if self._is_watching():
            self.resets.after_update()

    def _is_watching(self) -> bool:
        return 0 < self.num_steps < UNTIL


def living_optimizers() -> list[Optimizer]:
    """Every optimizer of torch's that lives. Cost: some 30 ms, one walk over Python's objects."""
    return [one for one in gc.get_objects() if issubclass(type(one), Optimizer) and hasattr(one, "param_groups")]


def facts_of(
    optimizers: Sequence[tuple[Any, WatchedOptimizer | None, bool]], names: Mapping[int, str]
) -> tuple[OptimizerFacts, ...]:
    """The facts of some optimizers.

    Args:
        optimizers: each with what is known of its steps, and whether it is counted.
        names: of parameters, by id.
    """
    return tuple(
        OptimizerFacts(
            name=type(one).__name__,
            is_counted=is_counted,
            num_steps=known.num_steps if known is not None else 0,
            last_step=known.last_step if known is not None else -1,
            groups=tuple(settings_of(one, group) for group in _groups(one)),
            parameters=tuple(
                tuple(names[id(p)] for p in group.get("params", ()) if id(p) in names) for group in _groups(one)
            ),
            has_decoupled_decay=_decays_apart(one),
            is_adaptive=any(name in base.__name__ for base in type(one).__mro__ for name in _ADAPTIVE),
            shares_groups_with=tuple(
                place for place, (other, _, _) in enumerate(optimizers) if other is not one and _share(one, other)
            ),
            num_not_reset=known.resets.num_not_reset if known is not None else 0,
            not_reset=_names_of(known.resets.not_reset, names) if known is not None else (),
            were_reset=_names_of(known.resets.were_reset, names) if known is not None else (),
        )
        for one, known, is_counted in optimizers
    )


def _names_of(parameters: Iterable[Tensor], names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[id(p)] for p in parameters if id(p) in names)


def settings_of(optimizer: Any, group: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a parameter group; what is a tensor on a device is left out, as reading it would wait."""
    found: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas" and isinstance(value, tuple | list) and len(value) == 2:
            found |= {f"beta{n}": number for n, one in enumerate(value, 1) if (number := _number(one)) is not None}
        elif name != "params" and (number := _number(value)) is not None:
            found[name] = number
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        return float(value)
    return None


def _groups(optimizer: Any) -> list[Mapping[str, Any]]:
    groups = getattr(optimizer, "param_groups", None)
    return [group for group in groups if isinstance(group, Mapping)] if isinstance(groups, list | tuple) else []


def _share(one: Any, other: Any) -> bool:
    """Whether two optimizers hold one and the same group, as a wrapper and what it wraps do."""
    mine = set(map(id, _groups(one)))
    return any(id(group) in mine for group in _groups(other))


def _decays_apart(optimizer: Any) -> bool:
    names = [base.__name__ for base in type(optimizer).__mro__]
    groups = _groups(optimizer)
    return any("AdamW" in name or name in ("Lion", "Muon") for name in names) or any(
        bool(group.get("decoupled_weight_decay")) for group in groups
    )
