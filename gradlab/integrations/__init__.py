"""gradlab inside other people's training loops: a file a library, which imports that library and is imported by hand.

Accelerate, Fabric and plain loops need no file: `gradlab.watch` takes their models and optimizers as they are.
Lightning has a package of its own (`gradlab.lightning`).
"""
