"""Hooks: how gradlab gets called inside code that is not its own, and the state of the interpreter they may look in.

interpreter.py what every hook asks first: start here · mute.py no hook records while gradlab itself runs the model ·
call_hooks.py on modules · leaf_hooks.py on leaf tensors · step_hooks.py, compiled_step.py on an optimizer's `step` ·
backward_calls.py before a backward.
Hooks hand what they see to taps, the guard against non-finite numbers, Jacobians and clocks, which register them.
"""
