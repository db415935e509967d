"""Taps: which tensors of a training step are watched, and how they are reached without disturbing it.

rule.py what to watch · sites.py names and patterns · visit.py every tensor of one forward, in order ·
modules.py, functional.py, parameters.py the hooks of a training step.
"""
