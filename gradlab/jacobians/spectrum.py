"""The spectrum of a matrix: its singular values, and the numbers that sum it up: norm, condition number, ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_UP_TO = 1024
"""The shorter side up to which all singular values are computed (a quarter of a second on one core at the most)."""

_PIECE = 1 << 18
"""Entries that are converted to float64 at once."""

_OF_ALL = ("sigma_1", "sigma_min", "cond", "effective_rank", "participation_rank", "stable_rank")
_OF_SOME = ("sigma_1", "stable_rank")

Product = Callable[[Tensor], Tensor]
"""[k, n] -> [k, m]: k vectors through a matrix, a row each."""


@dataclass(frozen=True)
class Summary:
    """The numbers that sum up a matrix."""

    scalars: dict[str, float]
    """`nonfinite` (count), `fro`, and of the singular values σ: `sigma_1`, `sigma_min`, `cond` = σ₁/σ_min,
    `effective_rank` = exp(entropy of σ/Σσ) (Roy and Vetterli 2007), `participation_rank` = (Σσ²)²/Σσ⁴,
    `stable_rank` = ‖J‖_F²/σ₁². Of leading singular values only `sigma_1` and `stable_rank`."""
    singular_values: Tensor
    """[k] float64 on the host, largest first."""
    complete: bool = True
    """Whether these are all singular values."""


def summarise(matrix: Tensor, top: int = 8) -> Summary:
    """Sum up [rows, cols]. A matrix that is not finite has NaN for all but `nonfinite`.

    Cost: a Gram matrix of the shorter side in float64 and its eigenvalues, up to a side of `EXACT_UP_TO`; beyond, about
    twelve products with `top + 8` vectors for the `top` leading singular values.
    """
    complete = min(matrix.shape) <= EXACT_UP_TO
    fro = frobenius(matrix)
    if not math.isfinite(fro):
        nonfinite = float((~torch.isfinite(matrix)).sum())
        names = ("fro", *(_OF_ALL if complete else _OF_SOME))
        return Summary({"nonfinite": nonfinite} | dict.fromkeys(names, math.nan), torch.empty(0, device="cpu"))
    if complete:
        sigma = singular_values(matrix)
        return Summary({"nonfinite": 0.0, "fro": fro} | scalars_of_all(sigma, fro), sigma)
    start = torch.randn(top + 8, matrix.shape[1], generator=torch.Generator().manual_seed(0), device="cpu")
    values = matrix.float() if matrix.dtype in (torch.bfloat16, torch.float16) else matrix
    sigma = leading_singular_values(lambda u: u @ values.T, lambda v: v @ values, start.to(values), top)
    return Summary({"nonfinite": 0.0, "fro": fro} | scalars_of_leading(sigma, fro), sigma, complete=False)


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, [min(rows, cols)] float64 on the host, largest first.

    Those below the rounding of the matrix itself are noise and given as zero. A float32 matrix goes through its Gram
    matrix, whose own floor (1e-8 σ₁ in float64) lies below that rounding; a float64 one does not.
    """
    host = matrix.detach().cpu()
    if matrix.dtype == torch.float64:
        sigma = torch.linalg.svdvals(host)
    else:
        short = host if host.shape[0] <= host.shape[1] else host.T
        sigma = torch.linalg.eigvalsh(_gram(short)).flip(0).clamp(min=0).sqrt()
    floor = max(matrix.shape) * torch.finfo(matrix.dtype).eps * sigma[0]
    return torch.where(sigma > floor, sigma, 0.0)


def frobenius(matrix: Tensor) -> float:
    """‖J‖_F in float64, a few rows at a time: a float64 copy of the whole would take twice the block's memory."""
    step = max(1, _PIECE // max(1, matrix.shape[1]))
    squares = [torch.linalg.vector_norm(part, dtype=torch.float64) ** 2 for part in matrix.detach().split(step)]
    return float(torch.stack(squares).sum().sqrt())


def _gram(short: Tensor) -> Tensor:
    """[k, k] float64: JJᵀ, from a few columns at a time."""
    step = max(1, _PIECE // short.shape[0])
    gram = torch.zeros(short.shape[0], short.shape[0], dtype=torch.float64, device="cpu")
    for part in short.split(step, 1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    return gram


def leading_singular_values(mv: Product, rmv: Product, start: Tensor, top: int, passes: int = 5) -> Tensor:
    """The `top` largest singular values by block Krylov (Musco and Musco 2015), [top] float64 on the host.

    Right to about a percent on flat spectra, where sketches without passes are ten percent off, and far better on
    decaying ones.

    Args:
        mv: u ↦ Ju for [k, cols].
        rmv: v ↦ Jᵀv for [k, rows].
        start: [k, cols] random, k above `top`.
        top: how many are wanted.
        passes: how often both products are applied.
    Cost: `2 * passes + 1` products with k vectors, and `passes` orthogonalisations.
    """
    basis = torch.linalg.qr(start.T).Q.T
    images = newest = mv(basis)
    for _ in range(passes):
        products = directions = rmv(newest)
        for _ in range(2):  # Once more, since the first subtraction leaves its own rounding behind.
            directions = directions - (directions @ basis.T) @ basis
        q, r = torch.linalg.qr(directions.T)
        # What lies in the basis already comes back as rounding: it is no new direction.
        is_new = r.diagonal().abs() > 1e3 * torch.finfo(r.dtype).eps * torch.linalg.vector_norm(products)
        if not is_new.any():
            break
        directions = q.T[is_new]
        newest = mv(directions)
        basis, images = torch.cat([basis, directions]), torch.cat([images, newest])
    return torch.linalg.svdvals(images.double().cpu())[:top]


def scalars_of_all(sigma: Tensor, fro: float) -> dict[str, float]:
    """The scalars of all singular values, [k] largest first."""
    first, last = float(sigma[0]), float(sigma[-1])
    if first == 0:
        return dict.fromkeys(_OF_ALL, 0.0) | {"cond": math.nan}
    share, squares = sigma / sigma.sum(), (sigma / first) ** 2
    return {
        "sigma_1": first,
        "sigma_min": last,
        "cond": first / last if last > 0 else math.inf,
        "effective_rank": float(torch.special.entr(share).sum().exp()),
        "participation_rank": float(squares.sum() ** 2 / (squares**2).sum()),
        "stable_rank": (fro / first) ** 2,
    }


def scalars_of_leading(sigma: Tensor, fro: float) -> dict[str, float]:
    """The scalars of the leading singular values and the norm. No condition number: that takes the smallest one too."""
    first = float(sigma[0])
    return {"sigma_1": first, "stable_rank": (fro / first) ** 2 if first > 0 else 0.0}
