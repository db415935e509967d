"""Diagnosis: from what is known of a training to findings, sentences that say what is wrong, where, and what to try.

Start at context.py, what a rule sees · registry.py, what a rule is · rules/ has those of gradlab · engine.py asks them
at each look · ranking.py tells causes from symptoms · reactions.py says on which findings something is done.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab.diagnose.engine import Diagnosis as Diagnosis
    from gradlab.diagnose.options import Diagnose as Diagnose

_HOME = {"Diagnose": "gradlab.diagnose.options", "Diagnosis": "gradlab.diagnose.engine"}
"""Imported when they are first used: options are read where no rule is asked, and rules need numpy."""

__all__ = ["Diagnose", "Diagnosis"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gradlab.diagnose' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
