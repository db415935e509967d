"""The messages of TensorBoard's HPARAMS tab (plugin_data.proto and api.proto, 2.21), by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradlab.events.encode import DataClass, delimited, double, integer, metadata, tensor_value
from gradlab.tags import HPARAMS_EXPERIMENT_TAG, HPARAMS_PLUGIN, HPARAMS_SESSION_TAG

_STRING, _BOOL, _FLOAT64 = 1, 2, 3

Leaf = bool | int | float | str


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Leaf]:
    """`config` with dotted keys and the kinds of values that the tab knows: numbers, truth values, else text."""
    flat: dict[str, Leaf] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, np.generic):
            flat |= flatten({key: value.item()}, prefix)
        else:
            flat[name] = value if isinstance(value, bool | int | float) else str(value)
    return flat


def session_value(flat: Mapping[str, Leaf], wall_time: float) -> bytes:
    """The Value that says with which settings this run was started, and when."""
    entries = b"".join(delimited(1, delimited(1, name) + delimited(2, _leaf(leaf))) for name, leaf in flat.items())
    return _value(HPARAMS_SESSION_TAG, delimited(3, entries + double(5, wall_time)))


def experiment_value(flat: Mapping[str, Leaf], metrics: Sequence[str], wall_time: float) -> bytes:
    """The Value that says which columns the tab has: these settings, and the last value of these scalar tags."""
    settings = b"".join(delimited(4, delimited(1, name) + integer(4, _type(leaf))) for name, leaf in flat.items())
    columns = b"".join(delimited(5, delimited(1, delimited(2, tag))) for tag in metrics)
    return _value(HPARAMS_EXPERIMENT_TAG, delimited(2, double(3, wall_time) + settings + columns))


def _value(tag: str, plugin_content: bytes) -> bytes:
    """The tab reads metadata only, so the tensor is empty."""
    return tensor_value(tag, np.zeros(0, np.float32), metadata(HPARAMS_PLUGIN, plugin_content, DataClass.TENSOR))


def _leaf(leaf: Leaf) -> bytes:
    """A google.protobuf.Value."""
    if isinstance(leaf, bool):
        return integer(4, leaf)
    return delimited(3, leaf) if isinstance(leaf, str) else double(2, leaf)


def _type(leaf: Leaf) -> int:
    if isinstance(leaf, bool):
        return _BOOL
    return _STRING if isinstance(leaf, str) else _FLOAT64
