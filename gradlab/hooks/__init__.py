"""Hooks: how gradlab gets called inside code that is not its own, and the state of the interpreter they may look in.

interpreter.py what every hook asks first: start here · mute.py no hook records while gradlab itself runs the model ·
call_hooks.py on modules · leaf_hooks.py on leaf tensors · compiled_step.py on optimizers whose step is compiled.
Hooks hand what they see to taps, the guard against non-finite numbers, Jacobians and clocks, which register them.
"""
