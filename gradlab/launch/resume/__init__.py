"""A stopped run goes on exactly: what a checkpoint holds beyond Lightning's, and how it is put back.

Start at continuation.py · loaders.py the place in the data · data_state.py, workers.py what a data pipeline remembers ·
mid_epoch.py · checkpoints.py · origin.py.
"""
