"""Which argument a constructor refuses, so that the problem can be shown at that one.

Gradlab's own errors say it (`GradlabError.field`). For others it is found by trial, or by the names in their text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any


def refused_argument(
    error: Exception, make: Callable[..., Any], given: Mapping[str, Any], needed: Sequence[str] = ()
) -> str | None:
    """The argument that `error` is about; None where no single one is the cause.

    Args:
        error: what `make(**given)` raised.
        make: a constructor, called again with fewer arguments where the error itself does not name one.
        given: the arguments.
        needed: those without which `make` cannot be called.
    """
    if (named := getattr(error, "field", None)) in given:
        return named
    text = str(error)
    base = {name: given[name] for name in needed if name in given}
    if base and _refuses(make, base, text):
        return next(iter(base)) if len(base) == 1 else None
    return next((name for name in given if _refuses(make, {**base, name: given[name]}, text)), None)


def mentioned_argument(error: Exception, given: Collection[str]) -> str | None:
    """The argument that `error` is about, for a constructor that is not called twice: the only one that its text names.

    A user's model or data may take minutes to make.
    """
    if (named := getattr(error, "field", None)) in given:
        return named
    mentioned = [name for name in given if re.search(rf"\b{re.escape(name)}\b", str(error))]
    return mentioned[0] if len(mentioned) == 1 else None


def _refuses(make: Callable[..., Any], given: Mapping[str, Any], text: str) -> bool:
    """Whether `make` raises an error of this text."""
    try:
        make(**given)
    except Exception as error:
        return str(error) == text
    return False
