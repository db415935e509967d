"""What a value may be: types.py the rules, annotations.py which rule an annotation means, records.py, limits.py,
signatures.py.
"""
