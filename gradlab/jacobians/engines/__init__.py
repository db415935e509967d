"""Engines: ways to compute the same Jacobian, and which one is taken.

Start at problem.py, what an engine is given · fallback.py tries them in order · rows.py, columns.py, outer_product.py,
finite_differences.py.
"""
