"""Errors: their exit codes, the words that help, and that a training goes on where gradlab fails."""

from __future__ import annotations

import pytest

from gradlab import errors
from gradlab.errors import did_you_mean, never_stops_training, shortlist


def test_the_docstring_draws_every_error_with_its_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GradlabError)]
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in kinds if f"{kind.__name__} ({kind.exit_code})" not in errors.__doc__] == []


@pytest.mark.parametrize(
    "word, says",
    [("haed", " Did you mean 'head'?"), ("encodr.0", " Did you mean 'encoder.0' or 'encoder.1'?"), ("xyz", "")],
)
def test_near_misses_are_named(word: str, says: str) -> None:
    assert did_you_mean(word, ["head", "encoder.0", "encoder.1"]) == says


def test_a_long_list_of_names_is_cut_short() -> None:
    assert shortlist("abc", most=3) == "a, b, c"
    assert shortlist("abcde", most=3) == "a, b, c, ... (2 more)"
    assert shortlist([]) == "nothing"


class Fragile:
    """Fails at its second call."""

    def __init__(self, *, strict: bool = False) -> None:
        self.failure: Exception | None = None
        self.strict = strict
        self.calls = 0

    def fail(self, error: Exception) -> None:
        self.failure = error
        if self.strict:
            raise error

    @never_stops_training
    def call(self, how_often: int = 1) -> None:
        self.calls += how_often
        if self.calls > 1:
            raise ValueError("twice")


def test_what_fails_is_switched_off_and_the_training_goes_on() -> None:
    fragile = Fragile()
    for _ in range(4):
        fragile.call(how_often=1)
    assert fragile.calls == 2 and str(fragile.failure) == "twice"
    with pytest.raises(ValueError, match="twice"):
        Fragile(strict=True).call(2)
