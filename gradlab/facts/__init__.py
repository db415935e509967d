"""Facts: what graphs, modules and optimizers say exactly about a training, as names and numbers for the diagnosis.

Start at loss_graph.py, what stands between a loss and the model. Nothing of a graph is held: only names and counts.
"""
