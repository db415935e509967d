"""Facts: what graphs, modules, optimizers and parameters say of a training, as names and numbers for the diagnosis.

Start at collection.py, which hears of each backward and each step, and puts a `Context` together at every look. What it
reads: loss_graph.py the graph of a loss · layer_inputs.py what the graph has kept · readings.py numbers of parameters ·
parameter_facts.py, optimizer_facts.py, module_facts.py · numbers.py the way to the host. Of the training's tensors
nothing is held beyond a look.
"""
