"""Jacobian slices: d(site)/d(site) on a probe batch, without touching training.

spec.py what to compute · compute.py the function `gradlab.jacobian` · rows.py engines and chunks ·
replay.py a quiet forward on a probe batch.
"""
