"""The forward's side of a step: where a watched tensor comes by.

Start at modules.py, all that one plan has on a model · hooks.py around calls of modules · thread_state.py functional
ops · calls.py which call of a module or op it is · compiled.py models with compiled parts · torchscript.py hooks lifted
off while TorchScript reads a module.
"""
