"""The table of layers of the closing summary: parameters, their last gradient, and what stands out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradlab.finding import Finding

if TYPE_CHECKING:
    import torch
    from torch import nn

_FAR = 100.0
"""A gradient norm this many times above or below its neighbours is marked."""
_ROUNDING = 16.0
"""A bias whose gradient, per number, is this many roundings of the whole model's has none but rounding errors.

Five were measured at most, of biases before normalization in float32; a gradient that is one has thousands.
"""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One parameter."""

    site: str
    """Its name."""
    shape: tuple[int, ...]
    """Its shape."""
    parameters: int
    """How many numbers it holds."""
    gradient_norm: float | None = None
    """The norm of its gradient on the last logged step."""
    update_ratio: float | None = None
    """The norm of its last update by that of its values."""
    mark: str = ""
    """What is off, in a few words."""


def layer_table(
    model: nn.Module,
    latest: Mapping[str, Mapping[str, float]],
    findings: Sequence[Finding] = (),
    *,
    precision: torch.dtype | None = None,
) -> list[Layer]:
    """The layers of `model` in its own order, with the last values of the frame and their marks.

    A layer is marked where its gradient lies far from that of its neighbours. The gradient of a bias before a
    normalization, or of a key's in attention, is zero but for rounding errors, whose size says nothing: such a one is
    neither marked nor anybody's neighbour.

    Args:
        model: the model that was trained.
        latest: metric -> site -> value, as a frame gives them.
        findings: those of the run; a non-finite gradient is marked where one says so.
        precision: in which its matrices were multiplied, where that is coarser than its parameters.
    """
    norms = latest.get("weight_grad.norm", {})
    ratios = latest.get("update_ratio", {})
    nonfinite = {site for one in findings if one.name.startswith("nonfinite") for site in one.sites[:1]}
    layers = [
        Layer(
            site=name,
            shape=tuple(parameter.shape),
            parameters=parameter.numel(),
            gradient_norm=norms.get(name),
            update_ratio=ratios.get(name),
            mark=_own_mark(norms.get(name), watched=bool(norms), frozen=not parameter.requires_grad)
            or ("non-finite gradient" if name in nonfinite else ""),
        )
        for name, parameter in model.named_parameters()
    ]
    return _with_neighbours(layers, _rounding_errors(model, norms, precision))


def _rounding_errors(model: nn.Module, norms: Mapping[str, float], precision: torch.dtype | None) -> set[str]:
    """The biases whose gradients are no more than what rounding leaves of a sum that is zero."""
    import torch  # the table is read without it

    seen = {name: norms[name] for name, _ in model.named_parameters() if math.isfinite(norms.get(name, math.nan))}
    parameters = dict(model.named_parameters())
    numbers = sum(parameters[name].numel() for name in seen)
    typical = math.hypot(*seen.values()) / math.sqrt(max(numbers, 1))
    found = set()
    for name, norm in seen.items():
        parameter = parameters[name]
        if parameter.ndim > 1 or "bias" not in name.rpartition(".")[2]:
            continue
        epsilon = max(torch.finfo(dtype).eps for dtype in (parameter.dtype, precision or parameter.dtype))
        if norm / math.sqrt(max(parameter.numel(), 1)) < _ROUNDING * epsilon * typical:
            found.add(name)
    return found


def _own_mark(norm: float | None, *, watched: bool, frozen: bool) -> str:
    """What a gradient norm says by itself."""
    if frozen:
        return "frozen"
    if norm is None:
        return ""
    if math.isnan(norm) or math.isinf(norm):
        return "non-finite gradient"
    return "zero gradient" if watched and norm == 0 else ""


def _with_neighbours(layers: Sequence[Layer], left_out: Collection[str]) -> list[Layer]:
    """Mark what lies far from the layer before and the one after it; from the two nearest, at either end.

    Weights are compared with weights, biases with biases.
    """
    by_kind: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        if layer.gradient_norm and math.isfinite(layer.gradient_norm) and layer.site not in left_out:
            by_kind.setdefault(layer.site.rpartition(".")[2], []).append(index)
    marked = list(layers)
    for indices in by_kind.values():
        norms = [layers[index].gradient_norm or 0.0 for index in indices]
        if len(norms) < 3:
            continue
        for position, index in enumerate(indices):
            first = min(max(position - 1, 0), len(norms) - 3)
            nearest = [norms[other] for other in range(first, first + 3) if other != position]
            mark = _relative_mark(norms[position], nearest)
            if mark and not layers[index].mark:
                marked[index] = replace(layers[index], mark=mark)
    return marked


def _relative_mark(norm: float, neighbours: Iterable[float]) -> str:
    """A mark where `norm` is far from all of its neighbours, on the same side."""
    factors = [norm / neighbour for neighbour in neighbours]
    if min(factors) >= _FAR:
        return f"{min(factors):.0f} times its neighbours"
    if max(factors) <= 1 / _FAR:
        return f"{1 / max(factors):.0f} times below its neighbours"
    return ""
