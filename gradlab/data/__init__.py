"""Real data with no download: scikit-learn's digits, the bytes of Python's own sources, and generated sets.

digits.py, bytes.py, synthetic.py the data · in_memory.py what they share: tensors in memory, batches, their order.
"""

from gradlab.data.bytes import Bytes
from gradlab.data.digits import Digits
from gradlab.data.synthetic import Synthetic

__all__ = ["Bytes", "Digits", "Synthetic"]
