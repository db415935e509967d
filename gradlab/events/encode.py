"""TensorBoard's messages as bytes, by hand: Event > Summary > Value > (SummaryMetadata, TensorProto).

Belongs here: the protobuf wire format and the field numbers of TensorBoard's event, summary and tensor messages (2.21).
Does not: files (`writer`), or the bytes of a whole step at speed (`templates`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from math import prod

import numpy as np

from gradlab.errors import EventError

FILE_VERSION = "brain.Event:2"
"""What the first event of every file says."""
_DOUBLE = struct.Struct("<d")
_EVENT_HEAD = struct.Struct("<BdB")

DATA_TYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "int64": 9,
    "bool": 10,
    "uint16": 17,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
"""numpy's names -> the DataType of types.proto."""
DT_STRING = 7


class DataClass(IntEnum):
    """How TensorBoard stores a series; without it a plugin's series is dropped."""

    SCALAR = 1
    TENSOR = 2
    BLOB_SEQUENCE = 3


def varint(number: int) -> bytes:
    """`number` in base 128, low digits first; a negative one as its 64-bit two's complement."""
    number &= 0xFFFFFFFFFFFFFFFF
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def integer(field: int, value: int) -> bytes:
    """An int32, int64, bool or enum field."""
    return varint(field << 3) + varint(value)


def double(field: int, value: float) -> bytes:
    """A double field."""
    return varint(field << 3 | 1) + _DOUBLE.pack(value)


def delimiter(field: int, length: int) -> bytes:
    """What precedes `length` bytes of a bytes, string or message field."""
    return varint(field << 3 | 2) + varint(length)


def delimited(field: int, payload: bytes | str) -> bytes:
    """A bytes, string or message field."""
    raw = payload.encode() if isinstance(payload, str) else payload
    return delimiter(field, len(raw)) + raw


def event_head(step: int, wall_time: float) -> bytes:
    """The beginning of an Event; a Summary or another field follows."""
    return _EVENT_HEAD.pack(0x09, wall_time, 0x10) + varint(step)


def event(step: int, wall_time: float, summary: bytes) -> bytes:
    """An Event that holds a Summary."""
    return event_head(step, wall_time) + delimited(5, summary)


def first_event(wall_time: float) -> bytes:
    """The Event that a file begins with."""
    return double(1, wall_time) + delimited(3, FILE_VERSION) + delimited(10, delimited(1, "gradlab.events"))


def restart_event(step: int, wall_time: float) -> bytes:
    """An Event that tells TensorBoard's Python loader to forget what earlier files have at `step` and after."""
    return event_head(step, wall_time) + delimited(7, integer(1, 1))


def metadata(plugin_name: str, content: bytes, data_class: DataClass) -> bytes:
    """The metadata field of a Value: whose series it is and what the plugin has to know of it."""
    plugin_data = delimited(1, plugin_name) + delimited(2, content)
    return delimited(9, delimited(1, plugin_data) + integer(4, data_class))


def tensor_value_head(tag: str, dtype: str, shape: Sequence[int], value_metadata: bytes = b"") -> bytes:
    """A Summary's Value up to the raw contents of its tensor, which must follow: prod(shape) little-endian numbers."""
    content_bytes = prod(shape) * np.dtype(dtype).itemsize
    tensor_head = integer(1, DATA_TYPES[dtype]) + _shape(shape) + delimiter(4, content_bytes)
    value_head = delimited(1, tag) + value_metadata + delimiter(8, len(tensor_head) + content_bytes) + tensor_head
    return delimiter(1, len(value_head) + content_bytes) + value_head


def tensor_value(tag: str, array: np.ndarray, value_metadata: bytes = b"") -> bytes:
    """A Summary's Value that holds an array of numbers.

    Raises:
        EventError: if the format has no such type.
    """
    dtype = array.dtype.name
    if dtype not in DATA_TYPES:
        raise EventError(f"{tag}: cannot store an array of {dtype}. It may be one of {', '.join(DATA_TYPES)}.")
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensor_value_head(tag, dtype, array.shape, value_metadata) + little_endian.tobytes()


def string_value(tag: str, strings: Sequence[bytes], shape: Sequence[int], value_metadata: bytes = b"") -> bytes:
    """A Summary's Value that holds prod(shape) strings."""
    tensor = integer(1, DT_STRING) + _shape(shape) + b"".join(delimited(8, one) for one in strings)
    return delimited(1, delimited(1, tag) + value_metadata + delimited(8, tensor))


def scalar_value_head(tag: str) -> bytes:
    """A Summary's Value up to the four bytes of its float32, which must follow."""
    value_head = delimited(1, tag) + b"\x15"
    return delimiter(1, len(value_head) + 4) + value_head


def _shape(shape: Sequence[int]) -> bytes:
    return delimited(2, b"".join(delimited(2, integer(1, size)) for size in shape))
