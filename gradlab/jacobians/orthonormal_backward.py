"""A backward of one sample's replicas in which the gradients are orthonormalised at each site: the growth by QR.

The forward notes the sites between `wrt` and `of`; the backward carries k orthonormal directions. At a site the k
gradients are G = QR: R is what the directions grew by since the site before, and Q goes on in the gradient's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError, did_you_mean, shortlist
from gradlab.jacobians.inputs import call
from gradlab.jacobians.subgraph import StopForward
from gradlab.sites.forward import forward_walk
from gradlab.sites.names import is_op
from gradlab.sites.patterns import chooser


@dataclass(frozen=True)
class SampleGrowth:
    """The growth of one sample's directions."""

    sites: tuple[str, ...]
    """In forward order, beginning with `wrt`."""
    values: np.ndarray
    """[sites, k] float64: log|R_ii|."""
    audit_error: float
    """Of the product of all R against a plain backward, relative; NaN where that one is zero or not finite."""


def growth_of_sample(
    core: nn.Module,
    inputs: Any,
    *,
    of: str,
    wrt: str,
    at: tuple[str, ...],
    directions: int,
    generator: torch.Generator,
) -> SampleGrowth:
    """The growth from `of` back to `wrt`, by one forward and two backwards.

    Args:
        core: the model, inside `isolated`.
        inputs: `directions + 1` replicas of one sample. The last one's gradient stays zero, unless replicas mix.
        of: where the backward begins.
        wrt: where it ends.
        at: patterns of the sites in between.
        directions: how many; fewer where a site has fewer entries.
        generator: of the CPU, for the random directions.
    Raises:
        JacobianError: as `gradlab.depth_growth` does.
    """
    forward = _Forward(of, wrt, at)
    forward.run(core, inputs)
    forward.check(directions + 1)
    leaf, value, between = forward.leaf, forward.value, forward.between
    assert leaf is not None and value is not None
    k = min(directions, *(tensor[0].numel() for tensor in (leaf, value, *between.values())))
    start = torch.randn(value[0].numel(), k, generator=generator, dtype=torch.float64, device="cpu")
    cotangent = torch.zeros(directions + 1, len(start), dtype=torch.float64, device="cpu")
    cotangent[:k] = torch.linalg.qr(start).Q.T
    cotangent = cotangent.view(value.shape).to(value)
    (plain,) = torch.autograd.grad(value, leaf, cotangent, retain_graph=True)
    growth: dict[str, Tensor] = {}
    with _orthonormalised(between, growth, k):
        (last,) = torch.autograd.grad(value, leaf, cotangent)
    q = _orthonormalise(wrt, last, growth, k)
    sites = (wrt, *between)
    rows = torch.stack([growth[site].diagonal().abs().log() for site in sites])
    if not torch.isfinite(rows).all():
        where = next(site for site, row in zip(sites, rows, strict=True) if not torch.isfinite(row).all())
        raise JacobianError(
            f"the gradient at {where!r} is zero in some direction, or not finite: no growth to speak of."
        )
    error = _audit_error(plain[:k], q[:k], [growth[site] for site in reversed(sites)])
    if error > 0.05:
        raise JacobianError(
            f"the sites {shortlist(list(between), 4)} do not all lie on every path from {of!r} to "
            f"{wrt!r} (their product is off by {error:.1e}); leave out sites inside a branch."
        )
    return SampleGrowth(sites, rows.numpy(), error)


@contextmanager
def _orthonormalised(tensors: dict[str, Tensor], growth: dict[str, Tensor], k: int) -> Iterator[None]:
    """While open, a backward orthonormalises the first k gradients of these tensors and notes each R in `growth`."""
    handles = [
        tensor.register_hook(lambda grad, site=site: _orthonormalise(site, grad, growth, k))
        for site, tensor in tensors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _orthonormalise(site: str, grad: Tensor, growth: dict[str, Tensor], k: int) -> Tensor:
    """Note R; the gradient that goes on is Q."""
    flat = grad.reshape(len(grad), -1)
    if flat[k:].any():
        raise JacobianError(f"samples influence one another at {site!r}, so that replicas of one are not independent.")
    q, r = torch.linalg.qr((flat[:k] if flat.dtype == torch.float64 else flat[:k].float()).T)
    sign = r.diagonal().sign()
    growth[site] = (sign[:, None] * r).cpu().double()
    onward = torch.zeros_like(flat)
    onward[:k] = (q * sign).T.to(flat.dtype)
    return onward.view_as(grad)


def _audit_error(plain: Tensor, q: Tensor, rs: list[Tensor]) -> float:
    """JᵀV₀ = Q Rₙ⋯R₁, the R in backward order, against a plain backward."""
    product = torch.eye(len(q), dtype=torch.float64, device="cpu")
    for r in rs:
        product = r @ product
    expected = plain.reshape(len(plain), -1).cpu().double()
    off = torch.linalg.vector_norm(product.T @ q.reshape(len(q), -1).cpu().double() - expected)
    return float(off / torch.linalg.vector_norm(expected))


class _Forward:
    """A forward that begins its graph at `wrt`, notes the tensors in between, and ends at `of`."""

    def __init__(self, of: str, wrt: str, at: tuple[str, ...]) -> None:
        self.of, self.wrt, self.at = of, wrt, at
        self.chosen = chooser(at)
        self.leaf: Tensor | None = None
        self.value: Tensor | None = None
        self.between: dict[str, Tensor] = {}
        """The tensors that the patterns choose, by site, in forward order."""
        self.seen: dict[str, None] = {}

    def run(self, core: nn.Module, inputs: Any) -> None:
        functional = any(is_op(name) or "*" in name for name in (self.of, self.wrt, *self.at))
        with torch.no_grad(), forward_walk(core, self, functional=functional), suppress(StopForward):
            call(core, inputs)

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        """A tensor of the forward; the one that goes on in its place, or None for the same."""
        self.seen[site] = None
        if self.leaf is None:
            if site != self.wrt:
                return None
            if not value.is_floating_point():
                raise JacobianError(f"wrt={self.wrt!r} is {value.dtype}, which has no gradient.".replace("torch.", ""))
            self.leaf = value.detach().clone().requires_grad_()
            torch.set_grad_enabled(True)
            return self.leaf.clone()
        if site == self.of:
            self.value = value
            raise StopForward
        if self.chosen(site) and value.requires_grad:
            # A copy goes on, so that an in-place operation that follows comes after the hook on this tensor.
            self.between[site] = value
            return value.clone()
        return None

    def check(self, replicas: int) -> None:
        """Refuse sites that there are not, and those at which replicas are not apart."""
        for role, site in (("wrt", self.wrt), ("of", self.of)):
            if site not in self.seen:
                raise JacobianError(
                    f"{role}={site!r} is no site here.{did_you_mean(site, self.seen)} It has: {shortlist(self.seen)}."
                )
        if self.value is None or not self.value.requires_grad:
            raise JacobianError(f"of={self.of!r} does not depend on wrt={self.wrt!r} in this forward.")
        if not self.between:
            raise JacobianError(
                f"at={', '.join(map(repr, self.at))} matches no site between {self.wrt!r} and {self.of!r}. "
                f"There are: {shortlist(self.seen)}."
            )
        for site, tensor in {self.wrt: self.leaf, **self.between, self.of: self.value}.items():
            if tensor is None or tensor.dim() == 0 or len(tensor) != replicas:
                raise JacobianError(
                    f"{site!r} does not begin with a sample axis, so that replicas cannot be told apart."
                )
            if not torch.allclose(tensor, tensor[:1].expand_as(tensor), rtol=1e-3, atol=1e-5):
                raise JacobianError(f"replicas of one sample differ at {site!r}: the forward is random, or they meet.")
