"""perf/*: the scalars of speed and memory that are always on.

Start at metrics.py · clock.py the phases of a step · loop_hooks.py finds them in a plain loop · flops.py · devices.py ·
peaks.py.
"""
