"""Diagnosis: from what is known of a training to findings, sentences that say what is wrong, where, and what to try.

Start at context.py, what a rule sees · registry.py, what a rule is · rules/ has those of gradlab · engine.py asks them
at each look · ranking.py tells causes from symptoms.
"""

from gradlab.diagnose.engine import Diagnosis
from gradlab.diagnose.options import Diagnose

__all__ = ["Diagnose", "Diagnosis"]
