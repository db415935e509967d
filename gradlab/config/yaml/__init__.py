"""YAML text to nodes that know where they were written: nothing here knows what a setting means.

A reader starts at reader.py: it takes the text of a file (text.py) and gives nodes (nodes.py), with plain words of YAML
resolved by scalars.py; errors.py says in plain words what is wrong with the text.
"""
