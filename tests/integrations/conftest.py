"""A script in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import Script


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A script that the test writes."""
    return Script(tmp_path)
