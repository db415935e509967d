"""Jacobians: d(site)/d(site or parameter) on a probe batch or on the training step's graph, without touching training.

Start at measure.py. A `Request` for a slice comes from jacobian.py (once) or from scheduled.py (while a model trains:
replayed.py and live.py); a `JacobianBlock` goes out. Between them: isolation/ keeps training as it is, subgraph.py and
live_graph.py find the graph, problem_setup.py makes the problem that one of engines/ solves, audit.py checks it, and
block.py sums it up by spectrum.py. matrix_free.py does without the matrix; growth.py and sharpness.py measure other
things.
"""
