"""Jacobian slices: d(site)/d(site) on a probe batch, without touching training.

compute.py the function `gradlab.jacobian` · spec.py and probe.py the same again and again while a model trains ·
measure.py from question to block: quiet.py a model that may be run without a trace, replay.py the piece of graph,
problem.py its samples, rows and columns, rows.py and ladder.py the engines, audit.py and spectrum.py what is known of
the result, axes.py its names.
"""
