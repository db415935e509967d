"""Which parameters a state was loaded into, from `install` on: what is loaded comes from another training.

Belongs here: noticing `load_state_dict`. Does not: what follows from it (`parameter_facts`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from gradlab.identity import WeakIdentityDict

_loaded: WeakIdentityDict = WeakIdentityDict()
"""State of the process, which keeps nothing alive."""


def install() -> None:
    """Notice what is loaded from now on. Once a process."""
    load = nn.Module.load_state_dict
    if getattr(load, "_gradlab_notes_loaded", False):
        return

    @functools.wraps(load)
    def load_state_dict(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = {id(p): p._version for p in module.parameters()}
        result = load(module, *args, **kwargs)
        for p in module.parameters():
            if before.get(id(p)) != p._version:  # names that match nothing leave it as it was
                _loaded[p] = True
        return result

    load_state_dict._gradlab_notes_loaded = True  # type: ignore[attr-defined]
    nn.Module.load_state_dict = load_state_dict  # type: ignore[assignment, method-assign]


def loaded_among(parameters: Iterable[Tensor]) -> set[int]:
    """The ids of those that were loaded."""
    return {id(p) for p in parameters if p in _loaded} if len(_loaded) else set()
