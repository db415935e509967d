"""gradlab inside Lightning: a callback over Monitor, a Logger into the same event file, a module that declares taps.

A reader starts at callback.py, which drives a Monitor from Lightning's hooks.
"""
