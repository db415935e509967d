"""The buffer of a step: one float32 slot for each number, on the device, and its one copy to the host.

layout.py which slots belong to what -> rows.py, into which the hooks write (batching.py reduces small tensors together)
-> transfer.py, the copy to the host, from which `taps.series` makes series. finished_passes.py merges rows on the host
during a step of very many passes. Start at rows.py.
"""
