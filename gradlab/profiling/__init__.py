"""Profile windows: a few steps under torch.profiler, made into a trace for TensorBoard and a summary in numbers.

Start at profiler.py: a loop drives `Profiler`. options.py and triggers.py decide when a window begins, recording.py and
ranges.py record it, kineto.py reads the events from torch, `analysis/` makes numbers of them, writer.py writes trace
and summary into the run's `profile/` folder. files.py reads the summaries, requests.py asks a running loop for a
window, out_of_memory.py explains a torch.OutOfMemoryError.
"""
