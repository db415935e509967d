"""A stopped run goes on exactly: what a checkpoint holds beyond Lightning's, and how it is put back.

A reader starts at continuation.py, the callback that saves and restores; checkpoints.py says when a checkpoint is
written, origin.py where the run began.

- loaders.py how loaders are followed: followed_loader.py, epoch.py, loader_kinds.py, fingerprint.py
- data_state.py what a data pipeline remembers, which pipeline_search.py finds · workers.py the same in worker processes
- mid_epoch.py what an epoch has gathered so far
"""
