"""Findings from frames: one rule a function, no tensors and no hooks."""
