"""TensorBoard's messages read back from bytes: the inverse of `encode`, wide enough for what other writers put in.

Belongs here: the protobuf wire format and what a Value holds. Does not: files (`reader`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.events.encode import DATA_TYPES, DT_STRING

Field = tuple[int, int | bytes]
"""A field number with an integer (wire type 0) or raw bytes (the others)."""
_DTYPES = {number: np.dtype(name).newbyteorder("<") for name, number in DATA_TYPES.items()}
_PACKED = {5: "<f4", 6: "<f8"}
"""Fields of TensorProto with repeated numbers of fixed width."""
_PACKED_VARINTS = {7, 10, 11, 16, 17}
"""Those with repeated varints: int, int64, bool, uint32, uint64."""


@dataclass
class Metadata:
    """What the first Value of a tag says of its series."""

    plugin_name: str = ""
    content: bytes = b""
    data_class: int = 0


@dataclass
class Value:
    """A Summary's Value."""

    tag: str = ""
    value: np.ndarray | float | bytes | None = None
    metadata: Metadata | None = None
    kind: str = ""
    """`scalar`, `tensor`, `image` or `histogram`."""


@dataclass
class Event:
    """An Event, as far as it has Values."""

    step: int = 0
    wall_time: float = 0.0
    values: list[Value] = field(default_factory=list)


def event(payload: bytes) -> Event:
    """Decode an Event. Raises ValueError where the bytes are no message."""
    decoded = Event()
    for number, content in fields(payload):
        if number == 1:
            (decoded.wall_time,) = struct.unpack("<d", _raw(content))
        elif number == 2:
            decoded.step = _signed(content)
        elif number == 5:
            decoded.values += [_value(_raw(one)) for inner, one in fields(_raw(content)) if inner == 1]
    return decoded


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in the order in which they are written."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(message):
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(message)}")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        if at >= len(message):
            raise ValueError("a number is cut off")
        digit = message[at]
        at += 1
        number |= (digit & 0x7F) << shift
        if digit < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError(f"a number of more than ten digits before byte {at}")


def _value(message: bytes) -> Value:
    value = Value()
    for number, content in fields(message):
        if number == 1:
            value.tag = _raw(content).decode()
        elif number == 2:
            value.kind, value.value = "scalar", struct.unpack("<f", _raw(content))[0]
        elif number == 4:
            value.kind, value.value = "image", next((_raw(one) for n, one in fields(_raw(content)) if n == 4), b"")
        elif number == 5:
            value.kind, value.value = "histogram", _raw(content)
        elif number == 8:
            value.kind, value.value = "tensor", _tensor(_raw(content))
        elif number == 9:
            value.metadata = _metadata(_raw(content))
    return value


def _metadata(message: bytes) -> Metadata:
    metadata = Metadata()
    for number, content in fields(message):
        if number == 1:
            inner = dict(fields(_raw(content)))
            metadata.plugin_name = _raw(inner.get(1, b"")).decode()
            metadata.content = _raw(inner.get(2, b""))
        elif number == 4:
            metadata.data_class = _signed(content)
    return metadata


def _tensor(message: bytes) -> np.ndarray:
    """A TensorProto, whether its numbers stand in `tensor_content` or in a repeated field."""
    dtype, shape, content = 0, [], b""
    numbers: list[Any] = []
    for number, field_content in fields(message):
        if number == 1:
            dtype = _signed(field_content)
        elif number == 2:
            dims = (dict(fields(_raw(dim))) for n, dim in fields(_raw(field_content)) if n == 2)
            shape = [_signed(dim.get(1, 0)) for dim in dims]
        elif number == 4:
            content = _raw(field_content)
        elif number == 8:
            numbers.append(field_content)
        else:
            numbers += _numbers(number, field_content)
    if dtype == DT_STRING:
        strings = np.empty(len(numbers), object)
        strings[:] = numbers
        return strings.reshape(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor of type {dtype}, which is not one of {sorted(_DTYPES)}")
    if content or not numbers:
        return np.frombuffer(content, _DTYPES[dtype]).reshape(shape)
    array = np.array(numbers).astype(_DTYPES[dtype])
    return np.full(shape, array[0]) if array.size == 1 else array.reshape(shape)


def _numbers(number: int, content: int | bytes) -> list[Any]:
    """The numbers of one occurrence of a repeated field of TensorProto, packed or not."""
    if number in _PACKED:
        return list(np.frombuffer(_raw(content), _PACKED[number]))
    if number not in _PACKED_VARINTS:
        return []
    if isinstance(content, int):
        return [_signed(content)]
    digits, at, numbers = content, 0, []
    while at < len(digits):
        one, at = _varint(digits, at)
        numbers.append(_signed(one))
    return numbers


def _raw(content: int | bytes) -> bytes:
    if isinstance(content, int):
        raise ValueError("a number where bytes belong")
    return content


def _signed(content: int | bytes) -> int:
    if not isinstance(content, int):
        raise ValueError("bytes where a number belongs")
    return content - (1 << 64) if content >= 1 << 63 else content
