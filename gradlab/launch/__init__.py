"""Carry out an experiment in this process."""
