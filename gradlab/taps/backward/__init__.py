"""The backward's side of a step: gradients of tensors, then of parameters, then the update.

Start at recorder.py, which knows the passes of a step · hooks.py on tensors · segments.py checkpointed segments ·
parameters.py at the edges of the update · steps_in_backward.py · sharded.py.
"""
