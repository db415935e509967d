"""Checks of the arguments of a model: a wrong argument is named, with what was seen and the nearest fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradlab.errors import UsageError, did_you_mean


def check_choice(model: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Raise UsageError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        near = did_you_mean(str(value), choices)
        raise UsageError(f"{model}: {name} has no {value!r}.{near} It may be {', '.join(choices)}.")


def check_count(model: str, name: str, value: object) -> None:
    """Raise UsageError unless `value` is a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{model}: {name} must be a whole number from 1, got {value!r}.")


def check_counts(model: str, name: str, values: Sequence[int]) -> None:
    """Raise UsageError unless `values` is a list of at least one whole number from 1."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UsageError(f"{model}: {name} must be a list of whole numbers, as [128, 64], got {values!r}.")
    for position, value in enumerate(values):
        check_count(model, f"{name}[{position}]", value)


def check_dropout(model: str, value: float) -> None:
    """Raise UsageError unless `value` is a probability below 1."""
    if not 0.0 <= value < 1.0:
        raise UsageError(f"{model}: dropout must be from 0 up to, not including, 1, got {value!r}.")
