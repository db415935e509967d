"""The command line: one file for each command of `gradlab`, and main.py with the table of them.

A command reads arguments, calls a part below (launch, runs, config, attach) and prints. It imports what it needs inside
its function, so that `gradlab --help` is quick; options.py holds the options that several commands share.
"""
