"""NaN and infinity: seen before an update takes them in, and traced to the op that made them.

Start at guard.py, which looks at the gradients before an update and has the step run again (replay.py) · search.py
names the op · dispatch.py sees each op · dataflow.py what each op read and wrote.
"""
