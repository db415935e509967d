"""experiment.yaml: everything checked before anything runs, every problem at once, each at its line and column.

A reader starts at load.py: it reads a file (yaml/), sets overrides (overrides.py) and has every setting checked
(check.py), which gives an Experiment or a list of problems (problems.py).

- schema.py which settings there are, with types and limits · validation/ the rules that these mean
- sections.py what must be imported to be checked: class_paths.py, trainer.py, trainer_trial.py · sweep.py its axes
- patterns.py taps and Jacobians against the names of the built model, which `launch.prepare` builds
- write.py an experiment as YAML · json_schema.py for editors · attach_file.py the file of `gradlab attach --config`
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
