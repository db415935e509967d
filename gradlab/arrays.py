"""Arrays of numbers on the host: the number for "no value", and how arrays are protected, compared and shown.

Belongs here: what `values` does for plain Python values, done for those of numpy; apart, since the options of an
experiment are checked without numpy. Does not: what the numbers mean (`frame`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from gradlab.values import MOST_SHOWN, ReadOnlyDict, abridged, equality_key

ABSENT = np.uint32(0x7FC0_0ABE).view(np.float32)
"""The number in a series for "no value on this step": a NaN by its own bit pattern, so that a NaN that was really seen
differs from a site that did not run. (R tells its missing numbers from NaN in the same way.)"""


def is_absent(values: np.ndarray) -> np.ndarray:
    """[n] bool: where a float32 array holds `ABSENT`."""
    return np.asarray(np.ascontiguousarray(values, np.float32).view(np.uint32) == ABSENT.view(np.uint32))


def read_only(array: np.ndarray) -> np.ndarray:
    """The array, or a view of it that refuses to be written to."""
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def protect_fields(value: Any) -> None:
    """Make the arrays, lists and mappings in the fields of a frozen dataclass read-only, for its `__post_init__`."""
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if isinstance(content, np.ndarray):
            object.__setattr__(value, field.name, read_only(content))
        elif isinstance(content, Mapping):
            object.__setattr__(value, field.name, ReadOnlyDict(content))
        elif isinstance(content, list):
            object.__setattr__(value, field.name, tuple(content))


@equality_key.register
def _(array: np.ndarray) -> Hashable:
    """`ABSENT` is equal only to itself."""
    if array.dtype.kind in "fc":
        missing = np.isnan(array)
        absent = is_absent(array) if array.dtype == np.float32 else None
        array = array + array.dtype.type(0)  # a copy, in which -0 is 0
        array[missing] = np.nan
        if absent is not None:
            array[absent] = ABSENT
    return array.shape, array.dtype.str, array.tobytes()


@abridged.register
def _(array: np.ndarray) -> str:
    numbers = ", ".join(abridged(one) for one in array.flat[:MOST_SHOWN])
    return f"<{' x '.join(map(str, array.shape))} {array.dtype}: {numbers}{', ...' if array.size > MOST_SHOWN else ''}>"


@abridged.register(float)
@abridged.register(np.floating)
def _(number: Any) -> str:
    """Four digits; `absent` for `ABSENT`."""
    if isinstance(number, np.float32) and is_absent(np.array([number]))[0]:
        return "absent"
    return f"{number:.4g}"
