"""Growth: how fast directions grow or shrink from site to site on the way back through a network, layer by layer.

k replicas of one sample, with orthonormal cotangents at the output, go through one ordinary backward. At each site the
k gradients are orthonormalised again, G = QR: log|R_ii| is the growth of direction i since the site before, and Q goes
on in the gradient's place (Benettin et al. 1980). A network with dynamical isometry (Pennington et al. 2017) has zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradlab.arguments import NAME, PATTERNS, TEXT, check_arguments, named_options, one_of, whole
from gradlab.errors import JacobianError, did_you_mean, shortlist
from gradlab.frame import JacobianBlock
from gradlab.jacobians.inputs import call, count_samples, replicas
from gradlab.jacobians.isolation.isolated import isolated
from gradlab.jacobians.isolation.modules import ModuleMode
from gradlab.jacobians.subgraph import StopForward
from gradlab.sites.forward import forward_walk
from gradlab.sites.patterns import chooser
from gradlab.torch_arguments import INPUTS, MODEL


@named_options
def depth_growth(
    model: nn.Module,
    x: Any,
    *,
    at: str | Sequence[str],
    of: str = "output",
    wrt: str = "input",
    directions: int = 8,
    samples: int = 1,
    mode: ModuleMode = "eval",
    seed: int = 0,
    label: str = "",
) -> JacobianBlock:
    """The growth of `directions` random orthonormal directions from `of` back to `wrt`, site by site.

        growth = gradlab.depth_growth(model, x, at="layers.*")
        growth.values, growth.row_names, growth.summaries["mean"]

    values[s, i] = log|R_ii| from site s to the next site downstream, the mean over samples. Their sum over all sites is
    the growth of direction i through the network; all directions together, of a square Jacobian, give log|det J|.

    Args:
        model: any module, wrapped or not; run once a sample, without a trace.
        x: the input, [samples, ...]: a tensor, a tuple of arguments or a mapping of keyword arguments.
        at: patterns of the sites in between.
        of: where the backward begins.
        wrt: where it ends.
        directions: how many; fewer where a site on the way has fewer entries.
        samples: how many of the first samples to take the mean over.
        mode: as in `gradlab.jacobian`.
        seed: of the random directions.
        label: put behind the block's name.
    Returns:
        A block of kind `depth_growth`: [sites, directions], the sites in forward order beginning with `wrt`. Summaries:
        `mean` of all entries, `spread` (the standard deviation over directions, root mean square over sites), `total`
        (growth of the mean direction through all sites) and `log_cond` (first less last direction's total growth, a
        lower bound of the logarithm of the condition number).
    Raises:
        JacobianError: if a pattern or a site does not exist, samples influence one another, a gradient is not finite,
            or a site is not on every path.
    Cost: a forward with a batch of `directions + 1` and two backwards, a sample: one measures, the other audits the
    product of all R, which is right only where every path from `of` to `wrt` leads through all sites.
    """
    ends = {"model": model, "x": x, "at": at, "of": of, "wrt": wrt}
    given = ends | {"directions": directions, "samples": samples, "mode": mode, "seed": seed, "label": label}
    patterns = check_arguments("depth_growth()", _ARGUMENTS, given, JacobianError)["at"]
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    batch = count_samples(x)
    if batch is None or batch < samples:
        raise JacobianError(
            f"depth growth needs an input with a sample axis and at least {samples} samples, got {batch or 'no axis'}."
        )
    each, errors = [], []
    for sample in range(samples):
        sample_growth = _GrowthOfSample(of, wrt, patterns, torch.Generator().manual_seed(seed + sample))
        with isolated(model, mode=mode) as core:
            found, error = sample_growth.measure(core, replicas(x, batch, sample, directions + 1), directions)
        each.append(found)
        errors.append(error)
    values = np.mean(each, 0)
    notes = [f"mean over {samples} samples"] if samples > 1 else []
    if values.shape[1] < directions:
        notes.append(f"{values.shape[1]} directions, since a site has no more entries")
    return JacobianBlock(
        of=of,
        wrt=wrt,
        values=values.astype(np.float32),
        row_names=tuple(sample_growth.names),
        col_names=tuple(map(str, range(values.shape[1]))),
        engine="qr",
        audit_error=float(np.max(errors)),
        summaries=_summaries(values),
        kind="depth_growth",
        notes=tuple(notes),
        label=label,
    )


_ARGUMENTS = {
    "model": MODEL,
    "x": INPUTS,
    "at": PATTERNS,
    **dict.fromkeys(("of", "wrt"), NAME),
    **dict.fromkeys(("directions", "samples"), whole(1)),
    "mode": one_of("eval", "as_is"),
    "seed": whole(0),
    "label": TEXT,
}


def _summaries(values: np.ndarray) -> dict[str, float]:
    totals = values.sum(0)
    return {
        "mean": float(values.mean()),
        "spread": float(np.sqrt(values.var(1).mean())),
        "total": float(totals.mean()),
        "log_cond": float(totals.max() - totals.min()),
    }


class _GrowthOfSample:
    """The growth of one sample's directions: the visitor of its forward, and the hooks of its backward."""

    def __init__(self, of: str, wrt: str, patterns: tuple[str, ...], generator: torch.Generator) -> None:
        self.of, self.wrt, self.generator = of, wrt, generator
        self.patterns = patterns
        self.chosen = chooser(patterns)
        self.leaf: Tensor | None = None
        self.value: Tensor | None = None
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        self.growth: dict[str, Tensor] = {}
        self.seen: dict[str, None] = {}

    def measure(self, core: nn.Module, inputs: Any, directions: int) -> tuple[np.ndarray, float]:
        """[sites, k] float64, in forward order, and the audit error."""
        functional = any("/" in name or "*" in name for name in (self.of, self.wrt, *self.patterns))
        with torch.no_grad(), forward_walk(core, self, functional=functional), suppress(StopForward):
            call(core, inputs)
        self._check_sites(directions + 1)
        assert self.value is not None and self.leaf is not None
        kept = min(directions, *(t[0].numel() for t in (self.leaf, self.value, *self.tensors)))
        start = torch.randn(self.value[0].numel(), kept, generator=self.generator, dtype=torch.float64, device="cpu")
        cotangent = torch.zeros(directions + 1, len(start), dtype=torch.float64, device="cpu")
        cotangent[:kept] = torch.linalg.qr(start).Q.T
        cotangent = cotangent.view(self.value.shape).to(self.value)
        (plain,) = torch.autograd.grad(self.value, self.leaf, cotangent, retain_graph=True)
        with self._orthonormalising(kept):
            (last,) = torch.autograd.grad(self.value, self.leaf, cotangent)
        orthonormal = self._orthonormalise(self.wrt, last, kept)
        rows = torch.stack([self.growth[name].diagonal().abs().log() for name in self.names])
        if not torch.isfinite(rows).all():
            where = next(name for name, row in zip(self.names, rows, strict=True) if not torch.isfinite(row).all())
            raise JacobianError(
                f"the gradient at {where!r} is zero in some direction, or not finite: no growth to speak of."
            )
        found: np.ndarray = rows.numpy()
        return found, self._audit_error(plain[:kept], orthonormal[:kept])

    def _audit_error(self, plain: Tensor, orthonormal: Tensor) -> float:
        """JᵀV₀ = Q Rₙ⋯R₁ against a plain backward; NaN where that one is zero or not finite."""
        product = torch.eye(len(orthonormal), dtype=torch.float64, device="cpu")
        for name in reversed(self.names):
            product = self.growth[name] @ product
        expected = plain.reshape(len(plain), -1).cpu().double()
        off = torch.linalg.vector_norm(product.T @ orthonormal.reshape(len(orthonormal), -1).cpu().double() - expected)
        error = float(off / torch.linalg.vector_norm(expected))
        if error > 0.05:
            raise JacobianError(
                f"the sites {shortlist(self.names[1:], 4)} do not all lie on every path from {self.of!r} to "
                f"{self.wrt!r} (their product is off by {error:.1e}); leave out sites inside a branch."
            )
        return error

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        self.seen[site] = None
        if self.leaf is None:
            if site != self.wrt:
                return None
            if not value.is_floating_point():
                raise JacobianError(f"wrt={self.wrt!r} is {value.dtype}, which has no gradient.".replace("torch.", ""))
            self.leaf = value.detach().clone().requires_grad_()
            self.names.append(site)
            torch.set_grad_enabled(True)
            return self.leaf.clone()
        if site == self.of:
            self.value = value
            raise StopForward
        if self.chosen(site) and value.requires_grad:
            self.names.append(site)
            # The value goes on as a view of its own: an in-place operation that follows is then behind the hook.
            self.tensors.append(value)
            return value.clone()
        return None

    @contextmanager
    def _orthonormalising(self, kept: int) -> Iterator[None]:
        handles: list[RemovableHandle] = [
            tensor.register_hook(lambda grad, name=name: self._orthonormalise(name, grad, kept))
            for name, tensor in zip(self.names[1:], self.tensors, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _orthonormalise(self, name: str, grad: Tensor, kept: int) -> Tensor:
        """Note R; the gradient that goes on is Q."""
        flat = grad.reshape(len(grad), -1)
        if flat[kept:].any():
            raise JacobianError(
                f"samples influence one another at {name!r}, so that replicas of one are not independent."
            )
        q, r = torch.linalg.qr((flat[:kept] if flat.dtype == torch.float64 else flat[:kept].float()).T)
        sign = r.diagonal().sign()
        self.growth[name] = (sign[:, None] * r).cpu().double()
        onward = torch.zeros_like(flat)
        onward[:kept] = (q * sign).T.to(flat.dtype)
        return onward.view_as(grad)

    def _check_sites(self, replicas: int) -> None:
        for role, site in (("wrt", self.wrt), ("of", self.of)):
            if site not in self.seen:
                raise JacobianError(
                    f"{role}={site!r} is no site here.{did_you_mean(site, self.seen)} It has: {shortlist(self.seen)}."
                )
        if self.value is None or not self.value.requires_grad:
            raise JacobianError(f"of={self.of!r} does not depend on wrt={self.wrt!r} in this forward.")
        if not self.tensors:
            raise JacobianError(
                f"at={', '.join(map(repr, self.patterns))} matches no site between {self.wrt!r} and {self.of!r}. "
                f"There are: {shortlist(self.seen)}."
            )
        for name, tensor in zip((*self.names, self.of), (self.leaf, *self.tensors, self.value), strict=True):
            if tensor is None or tensor.dim() == 0 or len(tensor) != replicas:
                raise JacobianError(
                    f"{name!r} does not begin with a sample axis, so that replicas cannot be told apart."
                )
            if not torch.allclose(tensor, tensor[:1].expand_as(tensor), rtol=1e-3, atol=1e-5):
                raise JacobianError(f"replicas of one sample differ at {name!r}: the forward is random, or they meet.")
