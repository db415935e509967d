"""An answer with arrays as bytes: the length of a JSON header, the header, then the arrays, each at a multiple of 8.

`static/source.js` reads it back. The header's `arrays` has for each name its type, its shape and where it begins,
counted from the end of the header.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

TYPES = {"float32": "f4", "float64": "f8", "uint8": "u1", "uint16": "u2", "uint32": "u4"}


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an answer."""
    places, contents, at = {}, [], 0
    for name, array in arrays.items():
        kind = TYPES[array.dtype.name]
        raw = np.ascontiguousarray(array, f"<{kind}").tobytes()
        padding = -len(raw) % 8
        places[name] = [kind, list(array.shape), at]
        contents += [raw, bytes(padding)]
        at += len(raw) + padding
    text = json.dumps({**header, "arrays": places}, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return b"".join((struct.pack("<I", len(text)), text, *contents))


def unpack(answer: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of an answer: the inverse of `pack`."""
    (length,) = struct.unpack_from("<I", answer)
    header = json.loads(answer[4 : 4 + length])
    arrays = {
        name: np.frombuffer(answer, f"<{kind}", int(np.prod(shape)), 4 + length + at).reshape(shape)
        for name, (kind, shape, at) in header.pop("arrays").items()
    }
    return header, arrays
