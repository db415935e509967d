"""An empty register of rules, for tests that make their own."""

from __future__ import annotations

import pytest

from gradlab.diagnose import registry


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the test there are those rules alone that it makes."""
    monkeypatch.setattr(registry, "_rules", {})
