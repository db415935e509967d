"""The type hints of classes and of their constructors, evaluated one by one where they cannot be evaluated together.

A hint may be a name that exists only for type checkers; it then says nothing, and the others still count.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, get_type_hints


def class_hints(cls: type) -> Mapping[str, Any]:
    """The hints of the attributes of a class and its bases; `Any` for those that cannot be evaluated."""
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            names = {**vars(sys.modules.get(base.__module__, sys)), **vars(base)}
            hints = vars(base).get("__annotations__", {})
            found |= {name: _evaluated(hint, names) for name, hint in hints.items()}
        return found


def constructor_hints(cls: type) -> Mapping[str, Any]:
    """The hints of the arguments of a constructor; `Any` for those that cannot be evaluated."""
    makers = (inspect.unwrap(getattr(cls, name)) for name in ("__init__", "__new__"))
    make = next((maker for maker in makers if inspect.isfunction(maker)), None)
    if make is None:
        return {}
    try:
        return get_type_hints(make, include_extras=True)
    except Exception:
        names = vars(sys.modules.get(make.__module__, sys))
        return {name: _evaluated(hint, names) for name, hint in make.__annotations__.items()}


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)  # an annotation in a module that has just been imported and run
    except Exception:
        return Any
