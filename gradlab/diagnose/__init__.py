"""Diagnosis: from frames to findings, sentences that say what is wrong, where, and what to try.

Start at engine.py, which every frame of a Monitor goes through · rules/ has the cases that it knows.
"""

from gradlab.diagnose.engine import Diagnosis

__all__ = ["Diagnosis"]
