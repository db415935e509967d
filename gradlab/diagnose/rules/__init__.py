"""Rules, one family a file: numbers.py what is not finite · signal.py gradients of zero · ranks.py a rank apart.

A rule looks at frames and returns findings. It sees no tensors and puts on no hooks.
"""
