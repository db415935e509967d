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
from gradlab.sites.names import all_modules, module_names

_KINDS = (_NormBase, _DropoutNd, nn.RNNBase, nn.MultiheadAttention)


class _Seen:
    """One module, and in which mode it was."""

    def __init__(self, module: nn.Module, name: str, owner: nn.Module | None, *, is_first: bool) -> None:
        self.module = weakref.ref(module)
        self.owner = weakref.ref(owner) if owner is not None else lambda: None
        self.name = name
        self.is_first = is_first
        self.first_p = _settings(module).get("p")
        self.num_training = 0
        self.num_evaluating = 0
        """In a row."""
        self.since: int | None = None
        """The step from which on it is in evaluation mode."""

    def look(self, step: int, num_backwards: int) -> None:
        """So many backwards have ended since the last call, the last one in its mode as it is now."""
        module = self.module()
        if module is None:
            return
        if module.training:
            self.num_training += num_backwards if self.num_evaluating == 0 else 1
            self.num_evaluating, self.since = 0, None
        else:
            self.since = step if self.since is None else self.since
            self.num_evaluating += num_backwards if self.num_evaluating else 1


class ModuleModes:
    """The normalizations and dropouts of a model, and its layers that have a dropout of their own."""

    def __init__(self, model: nn.Module, numbers: Numbers) -> None:
        self._seen: list[_Seen] = []
        names = module_names(model)
        owners = {id(child): one for one in names for child in one._modules.values()}  # no hash of theirs is asked
        is_first = True
        for one, name in names.items():
            if isinstance(one, _KINDS):
                self._seen.append(_Seen(one, name, owners.get(id(one)), is_first=is_first))
            is_first = is_first and not one._parameters
        self._num_since = 0
        """How many backwards since the modes were read."""
        self._is_any_evaluating = False
        self._counters: dict[str, float] = {}
        for seen in self._seen:
            counter = getattr(seen.module(), "num_batches_tracked", None)
            if isinstance(counter, torch.Tensor) and not counter.is_meta and type(counter) is torch.Tensor:
                numbers.add(("tracked", seen.name), counter)

    def backward_ended(self, step: int, *, is_look: bool) -> None:
        """A backward of the model has ended. Cost: a third of a microsecond a module where the modes are read.

        They are read at looks, and wherever that of the first module is another than before.
        """
        if not self._seen:
            return
        self._num_since += 1
        first = self._seen[0].module()
        if is_look or (first is not None and first.training == self._is_any_evaluating):
            for one in self._seen:
                one.look(step, self._num_since)
            self._num_since = 0
            self._is_any_evaluating = first is not None and not first.training

    def take(self, values: Mapping[Hashable, np.ndarray]) -> None:
        """Numbers of a look have arrived: how many batches the normalizations had seen, at the first one."""
        for key, value in values.items():
            if isinstance(key, tuple) and key[0] == "tracked":
                self._counters[key[1]] = float(value)

    def facts(self, samples: Mapping[str, int], batches: Mapping[str, tuple[int, float]]) -> tuple[ModuleFacts, ...]:
        """Of each module that is still there.

        Args:
            samples: by the name of a batch norm's weight, the numbers a channel of the last batch.
            batches: by that name, the samples of the last batch, and the noise of its means.
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
                    batch=batches[own][0] if own in batches else None,
                    mean_noise=batches[own][1] if own in batches else None,
                    first_p=one.first_p,
                    evaluating_since=one.since,
                    is_alone_evaluating=not module.training and (owner := one.owner()) is not None and owner.training,
                    is_first=one.is_first,
                )
            )
        return tuple(found)


def _settings(module: nn.Module) -> dict[str, float]:
    names = ("p", "momentum", "eps", "affine", "track_running_stats")
    values = {name: getattr(module, name, None) for name in names}
    if isinstance(module, nn.RNNBase):
        values["p"] = module.dropout if module.num_layers > 1 else 0.0
    elif isinstance(module, nn.MultiheadAttention):
        values["p"] = module.dropout
    return {name: float(value) for name, value in values.items() if isinstance(value, bool | int | float)}


def with_suspects(found: NonfiniteFacts, model: nn.Module) -> NonfiniteFacts:
    """The facts with the modules that may have made what is not finite: those between bad parameters and good ones."""
    bad = set(found.weights)
    named = [(name, one) for one, name in module_names(model).items()]
    own = [{f"{name}.{p}" if name else p for p, _ in one.named_parameters(recurse=False)} for name, one in named]
    last = max((place for place, names in enumerate(own) if names & bad), default=None)
    if last is None:
        return found
    suspects: list[str] = []
    for place in range(last + 1, len(named)):
        name, one = named[place]
        if own[place]:
            return replace(found, suspects=tuple(suspects))
        if not any(inner._parameters for inner in all_modules(one)) and not type(one).__module__.startswith("torch.nn"):
            suspects.append(name)
    return found
