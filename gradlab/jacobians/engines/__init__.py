"""Engines: ways to compute the same blocks of a Jacobian from the same `Problem`, and which of them is used.

Start at problem.py, what an engine is given, and fallback.py, which tries them in order · rows.py, columns.py,
outer_product.py and finite_differences.py are the engines.
"""
