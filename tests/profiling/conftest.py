from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from profiling.example import Run

CUDA_TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "cuda_traces"


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def cuda_trace() -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        path = CUDA_TRACES / name
        if not path.exists():
            pytest.skip(f"the stored CUDA trace {name} is not on this machine; it is not part of the repository")
        return gzip.decompress(path.read_bytes())

    return read
