"""The state of every random number generator of this process, taken and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def snapshot() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, as values that a checkpoint can hold."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": list(random.getstate()[1]),
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Put back what `snapshot` took. States of CUDA devices that are not here are left out."""
    random.setstate((random.getstate()[0], tuple(state["python"]), None))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), index)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside the `with` block is as if it had never been drawn."""
    before = snapshot()
    try:
        yield
    finally:
        restore(before)
