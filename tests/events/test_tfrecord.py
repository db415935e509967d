"""Checksums: known values, and both implementations against each other."""

import sys
from importlib import reload

import google_crc32c
import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from gradlab.events import crc


@pytest.fixture(params=["google", "numpy"])
def crc32c(request):
    return {"google": google_crc32c.value, "numpy": crc.crc32c_numpy}[request.param]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),  # the check value of the CRC catalogues
        (bytes(32), 0x8A9136AA),  # this and the next three: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_checksums(crc32c, data, expected):
    assert crc32c(data) == expected


def test_both_implementations_agree_at_every_length_near_a_block_edge():
    data = np.random.default_rng(0).bytes(3 * crc.BLOCK_BYTES + 8)
    lengths = [*range(40), *range(crc.BLOCK_BYTES - 5, crc.BLOCK_BYTES + 6), 3 * crc.BLOCK_BYTES + 2, len(data)]
    assert [crc.crc32c_numpy(data[:n]) for n in lengths] == [google_crc32c.value(data[:n]) for n in lengths]


@pytest.mark.parametrize("data", [b"", b"123456789", bytes(range(24))])
def test_the_masked_checksum_is_tensorboards(data):
    assert crc.masked_crc32c(data) == masked_crc32c(data)


def test_numpy_takes_over_where_google_crc32c_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    try:
        reload(crc)
        assert crc.crc32c is crc.crc32c_numpy
        assert crc.masked_crc32c(b"123456789") == 0xC78AB0E5
    finally:
        monkeypatch.undo()
        reload(crc)
    assert crc.crc32c is google_crc32c.value
