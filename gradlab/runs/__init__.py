"""Runs on disk: folder.py what lies in a run folder and the state that it shows, find.py from what a person types to one.

lock.py says whether a run's process lives, record.py from which command, code and machine it came. Nothing here trains
or imports torch; `launch` and `attach` write these folders, the commands of `cli` read them.
"""
