"""perf/*: the scalars of speed and memory that are always on, for every training loop.

Start at performance.py: `Performance` follows a loop and emits the scalars. Times come from clock.py, in the phases of
phases.py; loop_hooks.py finds those phases in a plain loop (`gradlab.lightning.phases` does so in Lightning).
metrics.py makes means and rates of them, flops.py counts a step's operations, devices.py knows the peak rates of
devices, telemetry.py asks device and driver about memory and load.
"""
