"""Sites: the tensors of a forward, by name. Nothing here decides what is done with a tensor.

names.py what they are called: start here · patterns.py choose among them · leaves.py the tensors inside a value ·
ops.py which functional ops are sites · named.py `gradlab.tap` · forward.py a walk through a forward, site by site.
A model and its inputs come from taps, Jacobians and the command line, which get names, or tensors as they come by.
"""
