"""Numbers that sum up a Jacobian: its Frobenius norm and, where it is small enough, what its singular values say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_UP_TO = 1024
"""The shorter side up to which all singular values are computed (a quarter of a second on one core at the most)."""

_OF_SPECTRUM = ("sigma_1", "sigma_min", "cond", "effective_rank", "stable_rank")


@dataclass(frozen=True)
class Summary:
    """What a matrix amounts to."""

    scalars: dict[str, float]
    """`nonfinite` (count), `fro`, and of the singular values σ: `sigma_1`, `sigma_min`, `cond` = σ₁/σ_min,
    `effective_rank` = exp(entropy of σ/Σσ) (Roy and Vetterli 2007), `stable_rank` = ‖J‖_F²/σ₁²."""
    singular_values: Tensor
    """[k] float64 on the host, largest first; empty where there are too many."""


def summarise(matrix: Tensor) -> Summary:
    """Sum up [rows, cols]. A matrix that is not finite has NaN for all but `nonfinite`.

    Cost: a Gram matrix of the shorter side in float64 and its eigenvalues, up to a side of `EXACT_UP_TO`.
    """
    with_spectrum = min(matrix.shape) <= EXACT_UP_TO
    nonfinite = int((~torch.isfinite(matrix)).sum())
    if nonfinite:
        names = ("fro", *(_OF_SPECTRUM if with_spectrum else ()))
        return Summary({"nonfinite": float(nonfinite)} | dict.fromkeys(names, math.nan), torch.empty(0))
    fro = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    sigma = singular_values(matrix) if with_spectrum else torch.empty(0)
    return Summary({"nonfinite": 0.0, "fro": fro} | (_of_spectrum(sigma, fro) if with_spectrum else {}), sigma)


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, [min(rows, cols)] float64 on the host, largest first.

    Those below the rounding of the matrix itself are noise and given as zero. A float32 matrix goes through its Gram
    matrix, whose own floor (1e-8 σ₁ in float64) lies below that rounding; a float64 one does not.
    """
    exact = matrix.detach().cpu().double()
    if matrix.dtype == torch.float64:
        sigma = torch.linalg.svdvals(exact)
    else:
        short = exact if exact.shape[0] <= exact.shape[1] else exact.T
        sigma = torch.linalg.eigvalsh(short @ short.T).flip(0).clamp(min=0).sqrt()
    floor = max(matrix.shape) * torch.finfo(matrix.dtype).eps * sigma[0]
    return torch.where(sigma > floor, sigma, 0.0)


def _of_spectrum(sigma: Tensor, fro: float) -> dict[str, float]:
    first, last = float(sigma[0]), float(sigma[-1])
    if first == 0:
        return {"sigma_1": 0.0, "sigma_min": 0.0, "cond": math.nan, "effective_rank": 0.0, "stable_rank": 0.0}
    share = sigma / sigma.sum()
    return {
        "sigma_1": first,
        "sigma_min": last,
        "cond": first / last if last > 0 else math.inf,
        "effective_rank": float(torch.special.entr(share).sum().exp()),
        "stable_rank": (fro / first) ** 2,
    }
