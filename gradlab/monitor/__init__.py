"""The Monitor: what users hold, and what it does at the edges of a training step.

Data come from the taps, the guard, the clock, the profiler and Jacobians, and go by delivery.py to sinks and to whoever
asks. Start at monitor.py, the user's face, which watch.py makes and loop_monitor.py fits to frameworks.

    training_step.py    which part is called at which edge of a step
    steps.py            when these edges are, with counted_optimizers.py, running_step.py and missing_steps.py
    options.py          what `watch` accepts
    lifetime.py         who keeps a monitor alive; process_end.py what is called when the process ends
    series_folder.py    where its event file is, and who writes it
"""
