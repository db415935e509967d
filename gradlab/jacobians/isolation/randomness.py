"""Generators of random numbers, put back afterwards: torch's on each device, Python's and NumPy's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

_MT19937_BYTES = 624 * 4 + 4
"""What NumPy's legacy generator holds: 624 words and a position."""


@contextmanager
def random_numbers_kept(devices: set[torch.device]) -> Iterator[None]:
    """While open, random numbers may be drawn; afterwards every generator is back where it was.

    Args:
        devices: whose generators are kept, besides that of the CPU.
    """
    python, numpy, cpu = random.getstate(), _NumpyState(), torch.get_rng_state()
    try:
        if any(device.type not in ("cpu", "meta") for device in devices):
            with _devices_kept(devices):
                yield
        else:
            yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        numpy.restore()


@contextmanager
def _devices_kept(devices: set[torch.device]) -> Iterator[None]:
    with ExitStack() as stack:
        for device_type in {device.type for device in devices} - {"cpu", "meta"}:
            indices = {device.index or 0 for device in devices if device.type == device_type}
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=device_type))
        yield


class _NumpyState:
    """The state of NumPy's global generator.

    To read or to write it takes 50 microseconds, so it is written only where it may have changed: a normal deviate may
    come from a stored second one; all else moves the words.
    """

    def __init__(self) -> None:
        self.state: Any = np.random.get_state()
        self.words = _words()

    def restore(self) -> None:
        has_stored_normal = self.words is None or self.state[3]
        if has_stored_normal or _words() != self.words:
            np.random.set_state(self.state)


def _words() -> bytes | None:
    """The words themselves, or None of a generator that is no Mersenne twister."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
