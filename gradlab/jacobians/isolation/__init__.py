"""A model that may be run and differentiated without a trace in the training that goes on around it.

Start at isolated.py, the one context that everything else here serves · modules.py modes, buffers and attributes ·
torch_settings.py autocast, compilation, checkpointing · randomness.py random numbers · fsdp.py sharded parameters.
"""
