"""Taps: statistics of watched tensors and parameters in each logged training step, without a host read on the way.

Start at rule.py (`Tap`, what to watch) and engine.py (what happens at each edge of a step). plan.py gives each watched
site its slots · forward/ sees tensors come by, backward/ their gradients and the parameters · buffer/ holds the numbers
on the device and copies them to the host once · across_ranks/ adds up those of all ranks · series.py names them.
structure.py notices that a model has changed, unmatched.py explains why a pattern met nothing.
"""
