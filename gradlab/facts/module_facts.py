"""Normalizations and dropouts: their mode when a backward begins, and their settings.

Belongs here: reading flags of modules, host work only. Does not: numbers of tensors, but for the counters of a batch
norm when watching begins.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from gradlab.diagnose.context import ModuleFacts, NonfiniteFacts
from gradlab.facts.numbers import Numbers
from gradlab.sites.names import module_names


class _Seen:
    """One module, and in which mode it was."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = weakref.ref(module)
        self.name = name
        self.num_training = 0
        self.num_evaluating = 0
        """In a row."""

    def look(self) -> None:
        """A backward begins."""
        module = self.module()
        if module is not None:
            if module.training:
                self.num_training, self.num_evaluating = self.num_training + 1, 0
            else:
                self.num_evaluating += 1


class ModuleModes:
    """The normalizations and dropouts of a model."""

    def __init__(self, model: nn.Module, numbers: Numbers) -> None:
        kinds = (_NormBase, _DropoutNd)
        self._seen = [_Seen(one, name) for one, name in module_names(model).items() if isinstance(one, kinds)]
        self._counters: dict[str, float] = {}
        for one in self._seen:
            counter = getattr(one.module(), "num_batches_tracked", None)
            if isinstance(counter, torch.Tensor) and not counter.is_meta and type(counter) is torch.Tensor:
                numbers.add(("tracked", one.name), counter)

    def look(self) -> None:
        """A backward of the model begins. Cost: a tenth of a microsecond a module."""
        for one in self._seen:
            one.look()

    def take(self, values: Mapping[Hashable, np.ndarray]) -> None:
        """Numbers of a look have arrived: how many batches the normalizations had seen, at the first one."""
        for key, value in values.items():
            if isinstance(key, tuple) and key[0] == "tracked":
                self._counters[key[1]] = float(value)

    def facts(self, samples: Mapping[str, int]) -> tuple[ModuleFacts, ...]:
        """Of each module that is still there.

        Args:
            samples: by the name of a batch norm's weight, the numbers a channel of the last batch.
        """
        found = []
        for one in self._seen:
            module = one.module()
            if module is None:
                continue
            own = f"{one.name}.weight" if one.name else "weight"
            found.append(
                ModuleFacts(
                    name=one.name,
                    kind=type(module).__name__,
                    is_training=module.training,
                    num_evaluating=one.num_evaluating,
                    num_training=one.num_training,
                    settings=_settings(module),
                    requires_grad=any(p.requires_grad for p in module.parameters(recurse=False)),
                    is_loaded=self._counters.get(one.name, 0.0) > 0,
                    samples=samples.get(own),
                )
            )
        return tuple(found)


def _settings(module: nn.Module) -> dict[str, float]:
    names = ("p", "momentum", "eps", "affine", "track_running_stats")
    values = {name: getattr(module, name, None) for name in names}
    return {name: float(value) for name, value in values.items() if isinstance(value, bool | int | float)}


def with_suspects(found: NonfiniteFacts, model: nn.Module) -> NonfiniteFacts:
    """The facts with the modules that may have made what is not finite: those between bad parameters and good ones."""
    bad = set(found.weights)
    named = list(model.named_modules())
    own = [{f"{name}.{p}" if name else p for p, _ in one.named_parameters(recurse=False)} for name, one in named]
    last = max((place for place, names in enumerate(own) if names & bad), default=None)
    if last is None:
        return found
    suspects: list[str] = []
    for place in range(last + 1, len(named)):
        name, one = named[place]
        if own[place]:
            return replace(found, suspects=tuple(suspects))
        if not any(True for _ in one.parameters()) and not type(one).__module__.startswith("torch.nn"):
            suspects.append(name)
    return found
