"""Whether a model still has the modules and parameters that it had: layers are replaced, added, frozen and pruned.

Nothing tells of that, so it is asked at the first forward of each step on which something is due: are the tables of
parameters and of children what they were? By identity, since an equal layer is another one.
"""

from __future__ import annotations

import os
import sys
from itertools import chain
from operator import is_

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradlab.sites.names import all_modules


class Structure:
    """The modules and parameters of a model at one moment, parameters and children in place.

    Not seen: a module whose whole `_parameters` or `_modules` is exchanged for another table by hand, and what a
    script module does inside.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [vars(one) for one in all_modules(model) if not isinstance(one, torch.jit.ScriptModule)]
        parameters = [own["_parameters"] for own in modules if own["_parameters"]]
        children = [own["_modules"] for own in modules if own["_modules"]]
        self._empty = [own[name] for own in modules for name in ("_parameters", "_modules") if not own[name]]
        self._tables = [*parameters, *children]
        self._names = list(chain.from_iterable(self._tables))
        self._values = [table.values() for table in self._tables]
        self._members = list(chain.from_iterable(self._values))
        self._lazy = [p for table in parameters for p in table.values() if p is not None and is_lazy(p)]

    @property
    def is_lazy(self) -> bool:
        """Whether parameters were without a shape."""
        return bool(self._lazy)

    def has_changed(self) -> bool:
        """Whether the model has others by now. Cost: some 50 nanoseconds a parameter and a module."""
        return (
            any(self._empty)
            or list(chain.from_iterable(self._tables)) != self._names
            or not all(map(is_, chain.from_iterable(self._values), self._members))
            or any(not is_lazy(p) for p in self._lazy)
        )


def weights_are_lent() -> bool:
    """Whether `torch.func.functional_call` runs the model, with other weights than its own for the length of a call."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_FUNCTIONAL_CALL):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


_FUNCTIONAL_CALL = os.path.join("torch", "nn", "utils", "stateless.py")
