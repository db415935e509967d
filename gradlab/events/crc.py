"""The checksum of event records: CRC-32C (Castagnoli, 1993), rotated and offset as the record format asks.

`crc32c` is google_crc32c's where its C extension works, else numpy's below: the same numbers, twenty times slower.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

POLYNOMIAL = 0x82F63B78
"""x^32 + x^28 + x^27 + ... + 1, least significant bit first."""
BLOCK_BYTES = 1024
"""How many bytes `crc32c_numpy` takes at once."""


def crc32c_numpy(data: bytes) -> int:
    """CRC-32C of `data`.

    The register is linear over XOR, so a block's remainder is the XOR of one table entry a byte, chosen by the byte and
    by its distance from the block's end; the register so far is mixed into the block's first four bytes.

    Cost: about 8 ns a byte; 10 ms and 1 MB for the tables, once.
    """
    register = 0xFFFFFFFF
    view = np.frombuffer(data, np.uint8)
    for start in range(0, len(view), BLOCK_BYTES):
        register = _absorb(register, view[start : start + BLOCK_BYTES])
    return register ^ 0xFFFFFFFF


def _absorb(register: int, block: np.ndarray) -> int:
    """The register after `block`, which has at most BLOCK_BYTES bytes."""
    table, offsets = _tables()
    if len(block) < 4:
        for byte in block.tolist():
            register = (register >> 8) ^ int(table[offsets[-1] + ((register ^ byte) & 0xFF)])
        return register
    mixed = block.copy()
    mixed[:4] ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)
    return int(np.bitwise_xor.reduce(table[offsets[-len(mixed) :] + mixed]))


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The remainders [BLOCK_BYTES * 256] of each byte at each place of a block, and where each place's 256 begin."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, (last >> 1) ^ np.uint32(POLYNOMIAL), last >> 1)
    rows = [last]
    for _ in range(BLOCK_BYTES - 1):
        rows.append((rows[-1] >> 8) ^ last[rows[-1] & 0xFF])
    return np.concatenate(rows[::-1]), np.arange(BLOCK_BYTES) * 256


try:
    import google_crc32c

    crc32c = google_crc32c.value if google_crc32c.implementation == "c" else crc32c_numpy
except ImportError:
    crc32c = crc32c_numpy


def masked_crc32c(data: bytes) -> int:
    """The CRC as records store it, so that a checksum of bytes that hold checksums stays a good one."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
