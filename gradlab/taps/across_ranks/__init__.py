"""The numbers of all ranks: what each rank saw is packed, added up by one collective, and made into one series.

Start at reduce.py · bucket.py the packed array · group.py gradlab's own process group · tensor_parallel.py.
"""
