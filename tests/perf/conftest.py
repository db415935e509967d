from __future__ import annotations

import pytest
from profiling.example import Run


@pytest.fixture
def run() -> Run:
    return Run()
