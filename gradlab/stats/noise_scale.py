"""The gradient noise scale, from the norms of the gradients of micro-batches and of their sum."""

from __future__ import annotations

import numpy as np


def noise_scale(squares: np.ndarray, k: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The simple gradient noise scale tr(Σ) / |G|² of McCandlish et al. (2018), appendix A.1, in micro-batches.

    With k micro-batches of equal size, whose gradients g_i add up to the gradient used, |g|² is the mean of |g_i|² and
    |ḡ|² = |Σ g_i|² / k². Unbiased: |G|² = (k |ḡ|² - |g|²) / (k - 1) and tr(Σ) = (|g|² - |ḡ|²) / (1 - 1/k). Does not
    depend on whether the losses were divided by k.

    Args:
        squares: [sites] float64 squared norms of the micro-batches' gradients, added up; all of one loss scale.
        k: [sites] float64, how many micro-batches these are.
        total: [sites] float64 norms of the sums of the gradients.
    Returns:
        [sites + 1]: of each parameter, and of all together; NaN with fewer than two micro-batches. Multiply by the
        size of a micro-batch for a number of samples. One step's estimate is noisy and may be negative: average both
        of its parts over steps.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        small = squares / k
        big = np.square(total) / np.square(k)
        signal, noise = (k * big - small) / (k - 1), (small - big) / (1 - 1 / k)
        both = [np.append(part, part[k > 1].sum()) for part in (noise, signal)]
        return np.asarray(both[0] / both[1])
