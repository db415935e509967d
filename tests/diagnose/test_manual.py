"""What rules say of themselves: limits out of their source, and a paragraph on silence that nobody writes by hand."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from gradlab.diagnose import manual, registry

SOURCE = '''
from gradlab.diagnose.registry import Evidence, rule

_LARGE = 7.5
"""Of the norm.
Measured: 9."""


@rule("MN001", "made-up", certainty="scale-free")
def made_up(context):
    """Something made up.

    **What it sees.** Nothing.

    **How to silence it.** By hand.
    """
    yield from _found(context)


def _found(context):
    if context.limit(_LARGE) > context.limit(3):
        yield Evidence(message="x.", remedy="y")
'''


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    path = tmp_path / "rules_made_up.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("rules_made_up", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rules_made_up", module)
    spec.loader.exec_module(module)
    return next(one for one in manual.entries() if one.code == "MN001")


def test_limits_are_read_off_the_source_with_the_text_below_them(made_up):
    assert [(one.usual, one.about) for one in made_up.limits] == [(7.5, "Of the norm. Measured: 9."), (3.0, "")]


def test_the_paragraph_on_silence_is_made_for_each_rule(made_up):
    assert "By hand" not in made_up.about
    assert made_up.about.count(manual.SILENCE) == 1 and "ignore=['MN001']" in made_up.about
    assert made_up.first_line == "Something made up."


def test_every_finding_from_elsewhere_is_described():
    from gradlab.diagnose.catalogue import FROM_ELSEWHERE

    assert FROM_ELSEWHERE.keys() <= {one.code for one in manual.entries()}
    assert all(manual.SILENCE in one.about for one in manual.entries())
