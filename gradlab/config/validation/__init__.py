"""What the value of a setting may be: from type annotations to rules, and from nodes to values or problems.

A reader starts at rules.py, what a rule is; annotations.py says which rule an annotation means.

- limits.py conditions in `Annotated` · converted.py values that a file writes as text · records.py dataclasses
- keys.py mappings whose keys are known · signatures.py the arguments of a class · type_hints.py reading annotations
- refused_argument.py which argument a constructor refuses
"""
