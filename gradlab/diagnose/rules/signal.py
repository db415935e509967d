"""The signal on its way back: gradients that are exactly zero for several logged steps in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradlab.diagnose.context import Abstain, Context
from gradlab.diagnose.registry import Evidence, rule
from gradlab.frame import Frame

ZERO_FRAMES = 3
"""In so many logged steps in a row a gradient must be exactly zero before there is a finding."""
_METRICS = ("output_grad.norm", "weight_grad.norm")


@rule("GL407", "zero-gradient", certainty="exact", clock="frame", ends_after=1)
def zero_gradient(context: Context) -> Iterator[Evidence]:
    """A gradient that arrives is exactly zero, step after step.

    **What it sees.** The norms of gradients that the taps watch: exactly 0 in three logged steps in a row. A bias is
    told only with the weight beside it: its gradient may cancel, as that of the last bias of a critic does in
    mean(fake) - mean(real).

    **Why it hurts.** What has no gradient does not learn.

    **What to do.** Look for a saturated or dead activation after it, or a path to the loss that is cut off.

    **What looks like it and is healthy.** Gradients of 1e-30 are not zero, and no finding.
    """
    frames = [frame for frame in context.frames if any(metric in frame for metric in _METRICS)][-ZERO_FRAMES:]
    if len(frames) < ZERO_FRAMES:
        raise Abstain("no gradient is watched often enough yet")
    sites = [site for metric in _METRICS for site in _zero_sites(frames, metric)]
    told = [site for site in sites if not _may_cancel(site, sites)]
    if told:
        many = f" ({len(told)} sites are)" if len(told) > 1 else ""
        yield Evidence(
            sites=tuple(told),
            message=f"{told[0]} has had a gradient of exactly zero in {ZERO_FRAMES} logged steps up to step "
            f"{frames[-1].step}{many}.",
            numbers={"sites": float(len(told))},
            remedy="Look for a saturated or dead activation after it, or a path to the loss that is cut off.",
        )


def _zero_sites(frames: Sequence[Frame], metric: str) -> list[str]:
    """The sites whose gradient is zero in all of the frames."""
    if not all(metric in frame for frame in frames):
        return []
    schema = frames[-1][metric].schema
    if any(frame[metric].schema.sites != schema.sites for frame in frames):
        return []
    zero = np.logical_and.reduce([frame[metric].array == 0.0 for frame in frames])
    return [schema.sites[place] for place in np.flatnonzero(zero)]


def _may_cancel(site: str, silent: Sequence[str]) -> bool:
    """Whether a site is a bias whose weight has a gradient."""
    module, _, own = site.rpartition(".")
    return own == "bias" and f"{module}.weight" not in silent
