"""NaN and infinity: seen before an update takes them in, and traced to the op that made them.

Start at guard.py, which looks at the gradients before an update · search.py repeats the step to find the op ·
dispatch.py sees each op of it · dataflow.py what each op read and wrote.
"""
