"""Sites: the tensors of a forward, by name. Nothing here decides what is done with a tensor.

names.py what they are called: start here · patterns.py choose among them · leaves.py the tensors inside a value ·
ops.py which functional ops are sites · user_code.py the line that calls one · named.py `gradlab.tap` · forward.py walk
through a forward. Taps, Jacobians and the command line ask with a model; they get names, or the tensors as they come.
"""
