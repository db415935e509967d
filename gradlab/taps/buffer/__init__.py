"""The buffer of a step: one float32 slot for each number, on the device, and its one copy to the host.

Start at rows.py · batching.py small tensors reduced together · finished.py passes whose graph is gone.
"""
