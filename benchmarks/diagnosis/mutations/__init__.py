"""Faults that are planted into the syntax tree of a healthy training script.

`script.py` reads a script (its optimizers, backwards, losses, models), `layers.py` reads the modules of a model;
`wiring.py`, `losses.py`, `steps.py`, `weights.py` and `inputs.py` hold one function per fault, which `mutate.py`
lists and runs.
"""
