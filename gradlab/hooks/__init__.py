"""Hooks: how gradlab gets called inside code that is not its own, and what state that code may be in.

call_hooks.py around a module's call · leaf_hooks.py on leaf tensors · compiled_step.py on a compiled optimizer step ·
mute.py switches all of them off. Start at interpreter.py: what every hook asks before it looks at anything.
"""
