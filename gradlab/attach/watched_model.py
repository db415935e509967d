"""One watched model: the monitor on it while it is trained, and its results afterwards.

Belongs here: what is kept of a model between its optimizers, without keeping the model. Does not: when it is watched
(`watching`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from gradlab.attach.results import ModelResults
    from gradlab.monitor.monitor import Monitor
    from gradlab.sinks import Sink


@dataclass(kw_only=True)
class WatchedModel:
    """A model, and the monitor on it while there is an optimizer; neither of them is kept alive for its results."""

    label: str
    model: weakref.ref[nn.Module]
    monitor: Monitor | None
    began: float = field(default_factory=time.monotonic)
    optimizers: list[weakref.ref[Optimizer]] = field(default_factory=list)
    earlier: ModelResults | None = None
    """Its results up to now, since its last optimizer is gone."""
    sinks: tuple[Sink, ...] = ()
    """Where results go on, should another optimizer come."""

    def has(self, wanted: set[int]) -> bool:
        """Whether the model has all of some parameters, by their ids."""
        model = self.model()
        return model is not None and wanted <= {id(p) for p in model.parameters()}

    def follow(self, optimizers: Sequence[Optimizer], died: Callable[[object], None]) -> None:
        """Notice when optimizers of the model are gone."""
        self.optimizers += [weakref.ref(one, died) for one in optimizers]

    @property
    def has_optimizer(self) -> bool:
        """Whether one of its optimizers is still there."""
        return any(ref() is not None for ref in self.optimizers)

    def results(self) -> ModelResults | None:
        """Its results so far; None where it has no monitor any more and none were kept."""
        if self.monitor is None:
            return self.earlier
        from gradlab.attach.results import results_of

        return results_of(self.monitor, self.label, self.began, self.earlier)

    def close(self) -> None:
        """Close its monitor, keep its results, and drop it."""
        from gradlab.attach.results import results_of

        monitor, self.monitor, self.optimizers = self.monitor, None, []
        if monitor is not None:
            self.sinks = monitor.sinks
            monitor.close()
            self.earlier = results_of(monitor, self.label, self.began, self.earlier)


def class_name(model: nn.Module) -> str:
    """The class of a model as the script has written it: `fully_shard` puts a class of its own on top."""
    kind = type(model)
    return kind.__bases__[-1].__name__ if kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}" else kind.__name__
