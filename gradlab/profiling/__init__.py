"""Profiles: where a step's time and memory go, always on and in windows of torch.profiler.

Always on: performance.py the scalars · phases.py the clock · loop.py hooks in a plain loop · flops.py · peaks.py ·
devices.py.

Windows: schedule.py the options · opening.py when, with watch.py, demand.py and budget.py · window.py begin, step,
pause, close · plain.py the `with` · recording.py one window of torch.profiler · marks.py the names in it.

What they show: kineto.py raw events · attribution.py time by module, into account.py · idle.py · kernels.py · memory.py
by module · categories.py by category · verdict.py · ranks.py · summary.py summary.json · trace.py and writing.py the
files · windows.py reading them. And oom.py, running out of memory.
"""
