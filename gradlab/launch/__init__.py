"""Carry out an experiment in this process: checked, trained, stopped by signals, resumed, summed up.

A reader starts at run.py, which follows one attempt from the file to its outcome.py and `exit.json`:

- prepare.py from a file to a built model (optimizer.py, machine.py, first_batch.py, random_state.py)
- session.py the Trainer and its callbacks (on_finding.py, progress.py, folder_watch.py, signals.py), resume/ going on
- processes.py, rank_failures.py several ranks · outputs.py the files of a run · messages.py the log and the terminal
- summary.py, layer_table.py what is said at the end · terminal.py, hints.py how it is shown
- jacobian.py, tensorboard.py what `gradlab jacobian` and `gradlab board` carry out
"""
