"""The Monitor: what users hold, and what listens to a training step.

Start at monitor.py, the user's face · steps.py which optimizers are counted and when a step ends · delivery.py frames
on their way to sinks · options.py what `watch` may be told · process_end.py how watching ends where nobody closes it ·
series_folder.py · missing_steps.py.
"""
