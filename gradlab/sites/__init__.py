"""Sites: the tensors of a forward pass, by name.

names.py site names and patterns · ops.py functional ops as sites · forward.py a forward shown site by site. Taps,
Jacobians and profiles stand on this; nothing here decides what is done with a tensor.
"""
