"""Checksums of records: published values, and TensorBoard's own."""

import google_crc32c
import pytest
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from gradlab.events.tfrecord import masked_crc32c


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
def test_the_checksum_is_castagnolis(data, expected):
    assert google_crc32c.value(data) == expected
    assert masked_crc32c(data) == (((expected >> 15) | (expected << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("data", [b"", b"123456789", bytes(range(24))])
def test_the_masked_checksum_is_tensorboards(data):
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)
