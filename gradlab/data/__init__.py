"""Real data with no download: scikit-learn's digits, the bytes of Python's own sources, and generated sets."""
