"""The numbers of all ranks: each puts its rows into a bucket, one collective adds the buckets up, one row comes out.

Start at reduce.py, which agrees with the other ranks on what is in a bucket and follows each step · bucket.py from rows
to an array and back · group.py gradlab's own process group · tensor_parallel.py the rules that can be combined at all.
The row goes to `taps.series`, as that of a single process does.
"""
