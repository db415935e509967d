"""Which argument of a constructor is at fault, by the error itself, by trial, or by the names in its text."""

from __future__ import annotations

import pytest

from gradlab import Tap
from gradlab.config.validation.refused_argument import mentioned_argument, refused_argument
from gradlab.errors import TapError


def trouble(make, given) -> Exception:
    with pytest.raises(Exception) as caught:
        make(**given)
    return caught.value


def test_an_error_of_gradlabs_own_names_its_field_and_nothing_is_tried():
    given = {"at": "*", "of": "output", "every": 0}
    error = trouble(Tap, given)
    assert isinstance(error, TapError) and error.field == "every"

    def never(**_: object) -> None:
        raise AssertionError("called")

    assert refused_argument(error, never, given) == mentioned_argument(error, given) == "every"


def test_other_errors_are_tried_one_argument_at_a_time():
    def make(width: int = 1, depth: int = 1) -> None:
        if depth > 3:
            raise ValueError("too deep")
        if width * depth > 5:
            raise ValueError("too many")

    assert refused_argument(trouble(make, given := {"width": 1, "depth": 4}), make, given) == "depth"
    assert refused_argument(trouble(make, given := {"width": 2, "depth": 3}), make, given) is None  # both together


def test_a_text_that_names_one_argument_means_that_one():
    assert mentioned_argument(ValueError("dropout must be below 1"), ["dropout", "lr"]) == "dropout"
    assert mentioned_argument(ValueError("lr and dropout differ"), ["dropout", "lr"]) is None
    assert mentioned_argument(ValueError("dropouts"), ["dropout", "lr"]) is None
