"""The forward's side of a step: where a watched tensor comes by.

Start at modules.py, which puts hooks on a model for one plan · calls.py calls of modules and ops by position ·
compiled.py models with compiled parts · torchscript.py hooks lifted off while TorchScript reads a module.
"""
