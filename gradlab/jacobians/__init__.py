"""Jacobians: d(site)/d(site or parameter) on a probe batch or on the training graph, without touching training.

Asking: compute.py `gradlab.jacobian` · spec.py and schedule.py the same again and again while a model trains · probe.py
a replayed slice, live.py one on the training step's graph · depth.py growth over depth · sharpness.py the loss Hessian.

Answering: question.py what is asked · quiet.py a model that may be run without a trace (randomness.py, sharded.py) ·
replay.py the piece of graph, reach.py how few hooks that takes · pose.py and problem.py its samples, rows and columns ·
measure.py from question to block · ladder.py which engine: rows.py, columns.py, rank.py, differences.py · audit.py and
spectrum.py what is known of the result, estimate.py the same without the result · axes.py its names.
"""
