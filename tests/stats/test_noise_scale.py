"""The gradient noise scale against random gradients whose variance and signal are known."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.stats.noise_scale import noise_scale


def test_the_noise_scale_estimates_the_ratio_of_variance_to_signal() -> None:
    rng = np.random.default_rng(0)
    signal, deviation, k = np.full(50, 0.3), 0.5, 8
    grads = signal + deviation * rng.standard_normal((4000, k, 50))
    small = np.square(np.linalg.norm(grads, axis=2)).mean()
    big = np.square(np.linalg.norm(grads.sum(1), axis=1)).mean()
    (scale, _) = noise_scale(np.array([k * small]), np.array([float(k)]), np.array([np.sqrt(big)]))
    assert scale == pytest.approx(50 * deviation**2 / np.square(signal).sum(), rel=0.02)


def test_one_micro_batch_says_nothing_and_leaves_the_sum_over_parameters_alone() -> None:
    squares, k, total = np.array([4.0, 9.0]), np.array([2.0, 1.0]), np.array([2.0, 3.0])
    first, second, whole = noise_scale(squares, k, total)
    assert first == whole and np.isnan(second)
