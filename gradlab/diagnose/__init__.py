"""Findings from frames: one rule a function, no tensors and no hooks."""

from gradlab.diagnose.engine import Diagnosis

__all__ = ["Diagnosis"]
