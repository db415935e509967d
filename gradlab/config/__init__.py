"""experiment.yaml: everything checked before anything runs, every problem at once, each at its line and column.

load.py the way in · files.py bytes to text · yaml.py, syntax.py, scalars.py text to nodes with positions (nodes.py) ·
overrides.py · check.py the whole experiment, by rules.py, limits.py, annotations.py, records.py and schema.py ·
sections.py what must be imported: classes.py, signatures.py, trainer.py · sweep.py axes · patterns.py against the built
model · render.py problems with carets · resolved.py and json_schema.py the way out.
"""

from __future__ import annotations

from gradlab.config.class_paths import importable
from gradlab.config.json_schema import json_schema
from gradlab.config.load import Built, Loaded, load
from gradlab.config.problems import Position, Problem, refusal, render
from gradlab.config.schema import ClassSpec, Diagnose, Experiment, LogRange, Resources, Stop, Sweep

__all__ = [
    "Built",
    "ClassSpec",
    "Diagnose",
    "Experiment",
    "Loaded",
    "LogRange",
    "Position",
    "Problem",
    "Resources",
    "Stop",
    "Sweep",
    "importable",
    "json_schema",
    "load",
    "refusal",
    "render",
]
