"""Profiles: torch.profiler for a few chosen steps, in files that TensorBoard's PyTorch Profiler tab reads right.

schedule.py when · window.py open, step, close · trace.py the file.
"""
