"""A recorded window made into numbers: pure functions from events to summary.json.

events.py what torch.profiler recorded · attribution.py time by module, into account.py · idle.py · kernels.py ·
memory.py by module · categories.py by category · verdict.py · ranks.py · summary.py puts them together.
"""
