"""The TFRecord format of event files: length, checksum of the length, payload, checksum of the payload; both ways.

Belongs here: bytes in, bytes out. Does not: what a payload means (`encode`, `decode`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from gradlab.errors import EventError

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size


def record(payload: bytes) -> bytes:
    """`payload` as one record: 16 bytes longer."""
    return b"".join((_header(len(payload)), payload, _CRC.pack(masked_crc32c(payload))))


@lru_cache(maxsize=256)
def _header(length: int) -> bytes:
    """The length and its checksum. Cached: the records of a run have few different lengths."""
    packed = _LENGTH.pack(length)
    return packed + _CRC.pack(masked_crc32c(packed))


def read_records(path: Path) -> Iterator[bytes]:
    """The payloads of an event file, in order. A record that is cut off at the end of the file is left out.

    Raises:
        EventError: if the file cannot be read, or a checksum does not fit; the message has the byte offset.
    """
    try:
        with path.open("rb") as file:
            yield from _records(file, path)
    except OSError as error:
        raise EventError(f"cannot read the event file {path}: {error.strerror or error}.") from error


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, 1993) as records store it: rotated and offset, so that a checksum of bytes that hold
    checksums stays a good one."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _records(file: BinaryIO, path: Path) -> Iterator[bytes]:
    offset = 0
    while len(header := file.read(_HEADER_BYTES)) == _HEADER_BYTES:
        (length,) = _LENGTH.unpack_from(header)
        if _CRC.unpack_from(header, _LENGTH.size)[0] != masked_crc32c(header[: _LENGTH.size]):
            raise _corrupt(path, offset, "length")
        payload, crc = file.read(length), file.read(_CRC.size)
        if len(crc) < _CRC.size:
            return
        if _CRC.unpack(crc)[0] != masked_crc32c(payload):
            raise _corrupt(path, offset, "payload")
        yield payload
        offset += _HEADER_BYTES + length + _CRC.size


def _corrupt(path: Path, offset: int, part: str) -> EventError:
    return EventError(
        f"{path} is damaged at byte {offset}: the checksum of the record's {part} does not fit. "
        "What comes before it is sound; what comes after it cannot be read."
    )
