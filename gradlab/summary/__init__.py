"""The end of a training in words and tables, for whatever prints one: a run, an attached script, a plain loop.

Start at terminal.py, the tables and the findings on a terminal · layer_table.py what stands in the table of layers ·
numbers.py numbers and durations for people. Data come from a monitor or a run folder; all goes to a terminal.
"""
