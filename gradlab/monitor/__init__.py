"""The Monitor: what users hold, and what it does at the edges of a training step.

Data come from the taps, the guard, the clock, the profiler and Jacobians (`training_step.py` calls them, `steps.py`
knows when), and go by `delivery.py` to sinks and to whoever asks. Start at monitor.py, the user's face. Beside it:
watch.py `gradlab.watch` · loop_monitor.py for frameworks that have loops of their own · options.py what `watch` accepts
· lifetime.py and process_end.py how long it lives and how it ends · series_folder.py where its event file is.
"""
