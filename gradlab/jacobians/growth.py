"""Growth: how fast directions grow or shrink from site to site on the way back through a network, layer by layer.

k orthonormal directions at the output go back through the network, and are orthonormalised again at each site, G = QR:
log|R_ii| is the growth of direction i since the site before (Benettin et al. 1980). A network with dynamical isometry
(Pennington et al. 2017) has zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from gradlab.arguments import NAME, PATTERNS, TEXT, check_arguments, named_options, one_of, whole
from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.inputs import count_samples, replicas
from gradlab.jacobians.isolation.isolated import isolated
from gradlab.jacobians.isolation.modules import ModuleMode
from gradlab.jacobians.orthonormal_backward import growth_of_sample
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
    each = []
    for sample in range(samples):
        with isolated(model, mode=mode) as core:
            each.append(
                growth_of_sample(
                    core,
                    replicas(x, batch, sample, directions + 1),
                    of=of,
                    wrt=wrt,
                    at=patterns,
                    directions=directions,
                    generator=torch.Generator().manual_seed(seed + sample),
                )
            )
    values = np.mean([one.values for one in each], 0)
    notes = [f"mean over {samples} samples"] if samples > 1 else []
    if values.shape[1] < directions:
        notes.append(f"{values.shape[1]} directions, since a site has no more entries")
    return JacobianBlock(
        of=of,
        wrt=wrt,
        values=values.astype(np.float32),
        row_names=each[-1].sites,
        col_names=tuple(map(str, range(values.shape[1]))),
        engine="qr",
        audit_error=float(np.max([one.audit_error for one in each])),
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
