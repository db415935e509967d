"""The backward's side of a step: gradients of tensors, then of parameters, then the update.

Start at recorder.py, which all hooks call · passes.py forward passes and their rows · tasks.py which backwards count ·
reruns.py and segments.py forwards inside a backward · hooks.py on tensors · parameters.py at the edges of the update ·
steps_in_backward.py optimizers that step there · sharded.py gradients under FSDP2.
"""
