"""Profiles: torch.profiler for a few chosen steps, in files that TensorBoard's PyTorch Profiler tab reads right.

schedule.py when · window.py begin, step, pause, close · recording.py one window of torch.profiler · marks.py the names
in it · trace.py the file · kineto.py raw events · attribution.py time by module · memory.py memory by module ·
verdict.py what bounds a step · summary.py summary.json.
"""
