"""Pictures of matrices for TensorBoard's Images tab: a colour map with white at zero, and PNG by zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_NEGATIVE = np.array([33, 76, 152], np.float32)
_POSITIVE = np.array([165, 24, 38], np.float32)
_NONFINITE = np.array([255, 196, 0], np.uint8)


def diverging(values: np.ndarray, *, least_pixels: int = 256, most_pixels: int = 2048) -> np.ndarray:
    """`values` as colours: blue below zero, white at zero, red above, on one scale up to the largest magnitude.

    Args:
        values: [rows, cols] of any real type. NaN and infinities are amber, and do not set the scale.
        least_pixels: sides shorter than this are enlarged by a whole factor, each for itself, up to about this length.
        most_pixels: sides longer than this are pooled; a pixel shows the value of largest magnitude under it.
    Returns:
        [height, width, 3] uint8.
    """
    matrix = _pool(_pool(np.asarray(values, np.float64), most_pixels).T, most_pixels).T
    finite = np.isfinite(matrix)
    magnitude = np.where(finite, np.abs(matrix), 0)
    top = float(magnitude.max(initial=0))
    strength = (magnitude / top if top > 0 else magnitude)[..., None]
    end = np.where(matrix[..., None] < 0, _NEGATIVE, _POSITIVE)
    pixels = np.rint(255 + strength * (end - 255)).astype(np.uint8)
    pixels[~finite] = _NONFINITE
    for axis in (0, 1):
        pixels = np.repeat(pixels, max(1, least_pixels // max(1, matrix.shape[axis])), axis)
    return pixels


def _pool(matrix: np.ndarray, most_rows: int) -> np.ndarray:
    """At most `most_rows` rows: the entry of largest magnitude of each group, a non-finite one before all others."""
    factor = -(-len(matrix) // most_rows)
    if factor <= 1:
        return matrix
    rows = -(-len(matrix) // factor)
    padded = np.zeros((rows * factor, matrix.shape[1]), matrix.dtype)
    padded[: len(matrix)] = matrix
    groups = padded.reshape(rows, factor, -1)
    rank = np.where(np.isfinite(groups), np.abs(groups), np.inf)
    pooled: np.ndarray = np.take_along_axis(groups, rank.argmax(1)[:, None], 1)[:, 0]
    return pooled


def png(pixels: np.ndarray) -> bytes:
    """A PNG file (ISO/IEC 15948) of `pixels`: [height, width, 3] uint8."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), level=6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
