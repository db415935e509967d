"""What goes into the layers with weights, and into the loss, as their nodes have kept it for the backward.

So nothing is put on any module. Where a node keeps nothing, or keeps it in somebody's hooks, there is no number.

Belongs here: the numbers, reduced on the device. Does not: reading the graph (`loss_graph`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.diagnose.context import TargetFacts
from gradlab.facts.loss_graph import ReadGraph, input_of_layer, saved
from gradlab.facts.numbers import Numbers

_MOST_NUMBERS = 1 << 18
"""Of a larger tensor some rows are looked at."""
_MOST_CLASSES = 4096
_INPUT = ("rms", "max_abs", "zeros", "nonfinite", "spread", "columns")


class GraphReading:
    """The numbers of one graph.

    Args:
        graph: read just now; its nodes are not kept.
        names: of parameters, by id: the sites.
        number: tells it from others at the same look.
        numbers: takes them to the host.
    """

    def __init__(self, graph: ReadGraph, names: Mapping[int, str], number: int, numbers: Numbers) -> None:
        self._number = number
        self._numbers = numbers
        self.sites: list[str] = []
        self.batch_norm_samples: dict[str, int] = {}
        """By weight of a batch norm: numbers a channel."""
        self._losses: list[tuple[str, int]] = []
        for weight, name, node in graph.layers:
            site = names.get(weight)
            if site is None or site in self.sites:
                continue
            if "BatchNorm" in name:
                x = saved(node, "input")
                if x is not None and x.dim() > 1:
                    self.batch_norm_samples[site] = x.numel() // max(x.shape[1], 1)
                continue
            x = input_of_layer(name, node)
            if x is not None and x.is_floating_point() and x.numel():
                self.sites.append(site)
                self._add(("input", site), _about_input(x.detach()))
        for number, (name, node) in enumerate(graph.losses[:8]):
            self._read_loss(number, name, node)

    def inputs(self) -> dict[str, np.ndarray]:
        """By name, [sites]."""
        values = self._numbers.values()
        table = (
            np.stack([values["input", self._number, site] for site in self.sites])
            if self.sites
            else np.empty((0, len(_INPUT)))
        )
        return dict(zip(_INPUT, table.T, strict=True))

    def targets(self) -> tuple[TargetFacts, ...]:
        """Of each loss function whose target was kept."""
        values, found = self._numbers.values(), []
        for number, (name, numel) in enumerate(self._losses):
            if ("target", self._number, number) not in values:
                continue
            mean, std, nonfinite = values["target", self._number, number]
            prediction = values.get(("prediction", self._number, number))
            counts = values.get(("counts", self._number, number))
            found.append(
                TargetFacts(
                    loss=name,
                    numel=numel,
                    mean=float(mean),
                    std=float(std),
                    prediction_mean=None if prediction is None else float(prediction[0]),
                    prediction_std=None if prediction is None else float(prediction[1]),
                    prediction_spread=None if prediction is None else float(prediction[2]),
                    label_counts=() if counts is None else tuple(int(one) for one in counts),
                    nonfinite=int(nonfinite),
                )
            )
        return tuple(found)

    def _add(self, key: tuple[str, str | int], value: Tensor) -> None:
        self._numbers.add((key[0], self._number, key[1]), value)

    def _read_loss(self, number: int, name: str, node: Any) -> None:
        target, prediction = saved(node, "target"), saved(node, "self")
        self._losses.append((name, target.numel() if target is not None else 0))
        if target is None or not target.numel():
            return
        target = _some(target.detach())
        wide = target.to(torch.float32)
        self._add(("target", number), torch.stack([wide.mean(), _std(wide), _nonfinite(wide)]))
        if prediction is None or not prediction.numel() or not prediction.is_floating_point():
            return
        prediction = _some(prediction.detach()).to(torch.float32)
        self._numbers.add(
            ("prediction", self._number, number),
            torch.stack([prediction.mean(), _std(prediction), _spread(prediction)]),
        )
        if name.startswith("Nll") and not target.is_floating_point() and prediction.dim() > 1:
            classes = prediction.shape[1]
            if classes <= _MOST_CLASSES:
                known = (target >= 0) & (target < classes)
                counts = torch.zeros(classes, device=target.device)
                flat = torch.where(known, target, 0).reshape(-1)
                self._numbers.add(
                    ("counts", self._number, number), counts.scatter_add_(0, flat, known.reshape(-1).float())
                )


def _about_input(x: Tensor) -> Tensor:
    """[6] float32, in the order of `_INPUT`."""
    x = _some(x).to(torch.float32)
    finite = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    rms = torch.linalg.vector_norm(finite) / x.numel() ** 0.5
    zeros = 1 - torch.count_nonzero(x) / x.numel()
    columns = finite.new_ones(())
    if x.dim() == 2:
        sizes = torch.linalg.vector_norm(finite, dim=0)
        columns = sizes.amax() / torch.where(sizes > 0, sizes, sizes.amax()).amin()
    return torch.stack([rms, finite.abs().amax(), zeros, _nonfinite(x), _spread(finite), columns])


def _spread(x: Tensor) -> Tensor:
    """The root mean square of what differs over the first dimension, by that of the whole."""
    if x.dim() < 2 or len(x) < 2:
        return torch.full((), torch.nan, device=x.device)
    apart = torch.linalg.vector_norm(x - x.mean(0, keepdim=True))
    return apart / torch.linalg.vector_norm(x)


def _std(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x - x.mean()) / x.numel() ** 0.5


def _nonfinite(x: Tensor) -> Tensor:
    return torch.count_nonzero(x - x != 0).to(torch.float32)


def _some(x: Tensor) -> Tensor:
    """The tensor, or evenly spread rows of a large one."""
    if x.numel() <= _MOST_NUMBERS or x.dim() == 0:
        return x
    return x[:: -(-x.numel() // _MOST_NUMBERS)]
