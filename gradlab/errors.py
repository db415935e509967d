"""What goes wrong: every exception that gradlab raises on purpose, with its exit code, and how it warns instead.

    GradlabError (1)
    ├── UsageError (2)          a command or a call that cannot mean anything
    │   ├── ArgumentError (2)   an argument that does not exist, or of a wrong type; a TypeError too
    │   └── ConfigError (2)     an experiment file or an override is wrong; carries every problem found
    ├── UnknownNameError (2)    a mapping was asked for a name that it does not have; a KeyError too
    ├── CopyError (1)           an object that is tied to this process was copied or pickled; a TypeError too
    ├── TapError (2)            a pattern, a tap or a statistic is wrong for this model
    ├── RanksError (1)          the ranks of a distributed run no longer watch together
    ├── JacobianError (1)       a Jacobian that does not exist or cannot be computed
    ├── ProfileError (1)        a profile window that cannot be opened or written
    ├── EventError (1)          an event file that cannot be written or read
    ├── TrainingStopped (79)    a rule has stopped the training, as asked; a SystemExit too
    ├── RunError (1)            a run folder that cannot be used
    │   └── UnknownRunError (2) no run of that name
    └── MachineError (3)        this machine cannot do it

A message says what is wrong, where, what was seen and the nearest fix. A training goes on whatever happens to gradlab:
what it has to switch off then it says by one warning.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class GradlabError(Exception):
    """Root of the hierarchy: `except GradlabError` catches whatever gradlab raises on purpose."""

    exit_code = 1
    field: str | None = None
    """The argument that is wrong, where it is one alone: a wrong setting is shown at its place in the file by it."""


class UsageError(GradlabError):
    """A command or a call whose arguments cannot mean anything."""

    exit_code = 2


class ArgumentError(UsageError, TypeError):
    """An argument that a function does not have, or a value of a type that it cannot be."""


class ConfigError(UsageError):
    """An experiment file or an override is wrong. Its text is the rendered list of all problems."""

    def __init__(self, text: str, problems: Iterable[Any] = (), *, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field
        self.problems = tuple(problems)
        """Each `gradlab.config.Problem`, in order, for callers that show them in a form of their own."""


class UnknownNameError(GradlabError, KeyError):
    """A name that a mapping does not have: `series["fc9.weight"]`. Its text is a sentence, unlike a KeyError's."""

    exit_code = 2
    __str__ = Exception.__str__


class CopyError(GradlabError, TypeError):
    """An object that cannot be copied or pickled, since it is tied to a model in this process."""


class TapError(GradlabError):
    """A pattern that matches nothing, a statistic that is no scalar, a tap on a tensor that has no such value."""

    exit_code = 2


class RanksError(GradlabError):
    """The ranks of a distributed run no longer watch together."""


class JacobianError(GradlabError):
    """A Jacobian that does not exist (no dependence, integer tensors) or cannot be computed here."""


class ProfileError(GradlabError):
    """A profile window that cannot be opened or written."""


class EventError(GradlabError):
    """An event file that cannot be created, written or read."""


class RunError(GradlabError):
    """A run folder that cannot be created, read or resumed."""


class UnknownRunError(RunError):
    """No run of that name."""

    exit_code = 2


class TrainingStopped(GradlabError, SystemExit):
    """A finding has stopped the training, as `Diagnose(on_finding="stop")` asks; where nobody catches it, the process
    ends with exit code 79, by which it is told from one that failed."""

    exit_code = 79

    def __init__(self, text: str, finding: Any = None) -> None:
        super().__init__(text)
        self.code = self.exit_code
        self.finding = finding
        """The `gradlab.Finding`."""


class MachineError(GradlabError):
    """This machine cannot do what was asked: no such device, no space, no permission."""

    exit_code = 3


class GradlabWarning(UserWarning):
    """Something of gradlab was switched off so that training goes on; the text names it."""


# Words for a message.


def did_you_mean(word: object, known: Iterable[str], *, most: int = 3) -> str:
    """A sentence with the words of `known` nearest to `word`, led by a space; "" where none is near."""
    near = difflib.get_close_matches(str(word), list(map(str, known)), n=most, cutoff=0.6)
    if not near:
        return ""
    return " Did you mean " + " or ".join(repr(name) for name in near) + "?"


def shortlist(names: Iterable[str], most: int = 12) -> str:
    """The first few names, and how many more there are, for an error message."""
    names = list(names)
    tail = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + tail if names else "nothing"


# Warnings in place of errors.

voices: list[Callable[[str], None]] = []
"""The last one takes gradlab's warnings in place of Python's `warnings`. `gradlab attach` prints them itself, whatever
the script that it runs has made of warnings."""


def warn(message: str) -> None:
    """Warn that something was left out or switched off; it points to the line of the user's that led here."""
    if voices:
        voices[-1](message)
    else:
        warnings.warn(f"gradlab: {message}", GradlabWarning, stacklevel=_user_level())


def _user_level() -> int:
    """The `stacklevel` of the nearest frame outside gradlab and torch, for a warning given by the caller."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and _PASSED_BY.match(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


_PASSED_BY = re.compile(re.escape(os.path.dirname(__file__) + os.sep) + r"|.*[/\\](torch|pytorch_lightning)[/\\]")


class _Failing(Protocol):
    """An object that watches a training and may fail at it."""

    @property
    def failure(self) -> Exception | None:
        """None until it has failed."""

    def fail(self, error: Exception) -> None:
        """Switch it off and say so."""


_Self = TypeVar("_Self", bound=_Failing)
_P = ParamSpec("_P")


def never_stops_training(method: Callable[Concatenate[_Self, _P], None]) -> Callable[Concatenate[_Self, _P], None]:
    """A method called by a training loop or a hook: what it raises goes to `self.fail`, and the training goes on.

    Does nothing where the object has failed before.
    """

    @wraps(method)
    def guarded(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if self.failure is None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.fail(error)

    return guarded


class without_warnings:
    """`with without_warnings():` drops the warnings that this thread gives inside, and leaves no trace of it.

    For work of gradlab's own in the middle of somebody's training, which may run the model's code once more. Not
    `warnings.catch_warnings`: entering and leaving it makes Python forget which warnings it has shown, in every module,
    so that those of the script appear again; and it holds for all threads. Here a filter is put in front that applies
    to one thread, and the version of the filters, by which Python knows that they have changed, is not touched.

    Args:
        category: drop these alone.
        message: drop those alone whose text begins so, a regular expression.
    """

    def __init__(self, category: type[Warning] = Warning, message: str = "") -> None:
        self._filter: Any = ("ignore", _OnThisThread(message), category, None, 0)
        self._filters: list[Any] = []

    def __enter__(self) -> None:
        self._filters = warnings.filters  # type: ignore[assignment]
        self._filters.insert(0, self._filter)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        now: Any = warnings.filters  # another list, where somebody has caught warnings meanwhile
        for filters in (self._filters, now):
            filters[:] = [one for one in filters if one is not self._filter]


class _OnThisThread:
    """The pattern of a filter of warnings, which matches on the thread that made it alone."""

    def __init__(self, message: str) -> None:
        self._thread = threading.get_ident()
        self._pattern = re.compile(message, re.I)

    def match(self, text: str) -> bool:
        """Whether a warning of this text is one to drop."""
        return threading.get_ident() == self._thread and self._pattern.match(text) is not None
