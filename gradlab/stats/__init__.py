"""Statistics of tensors: a few cheap reductions on the device, and what is made of their results on the host.

A **part** is a reduction of one tensor into a 0-d float32 tensor, without a host read (parts.py; norms.py, cosine.py).
On the host, parts of several tensors are combined into those of their concatenation (combine.py), and a **stat**, which
is what people read, is derived from parts (derive.py): the root mean square needs the norm and the number of elements.
"""
