"""YAML text to nodes that know where they were written: text.py, reader.py, nodes.py, scalars.py, errors.py."""
