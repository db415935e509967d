"""What goes into the layers with weights, and into the loss, as their nodes have kept it for the backward.

So nothing is put on any module. Where a node keeps nothing, or keeps it in somebody's hooks, there is no number.

Belongs here: the numbers, reduced on the device. Does not: reading the graph (`loss_graph`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.diagnose.context import MaskFacts, NonfiniteFacts, TargetFacts
from gradlab.facts.graph_parts import PartsReading
from gradlab.facts.loss_graph import (
    ReadGraph,
    input_edge,
    input_of_layer,
    layers_below,
    leaves_before,
    plain_factor,
    saved,
    source_of,
)
from gradlab.facts.numbers import Numbers

_MOST_NUMBERS = 1 << 18
"""Of a larger tensor some rows are looked at."""
_MOST_HIDDEN = 1 << 14
"""The same of what goes into hidden layers."""
_MOST_COMPARED = 1 << 16
"""The same where all rows of a channel are compared."""
_FEWEST_ROWS = 8
_MOST_CLASSES = 4096
_FEWEST_IN_MASK, _MOST_MASKS = 64, 64
_MASK_MARGIN = 0.25
"""A dropout multiplies what it keeps by one over the share that it keeps, up to chance."""
_INPUT = ("rms", "max_abs", "zeros", "nonfinite", "spread", "columns", "constant")
_PLACES_OF_DATA = 4096
_WIDEST_TARGET = 4
_LAST = "rms@last"
"""The rms at the last of several calls of one layer in a forward."""


class GraphReading:
    """The numbers of one graph.

    Args:
        graph: read just now; its nodes are not kept.
        names: of parameters, by id: the sites.
        number: tells it from others at the same look.
        numbers: takes them to the host.
        step: the number of the step under way.
        is_alarm: whether the loss is not finite, so that its weights are looked at too.
        reads_masks: whether to look for dropouts among its products.
    """

    def __init__(
        self,
        graph: ReadGraph,
        names: Mapping[int, str],
        number: int,
        numbers: Numbers,
        *,
        step: int = 0,
        is_alarm: bool = False,
        reads_masks: bool = False,
    ) -> None:
        self.step = step
        self._number = number
        self._numbers = numbers
        self.sites: list[str] = []
        self.batch_norm_samples: dict[str, int] = {}
        """By weight of a batch norm: numbers a channel."""
        self._batch_norms: dict[str, int] = {}
        """By weight of a batch norm: samples of the batch."""
        self._masks: list[str] = []
        """Of each product that may be a dropout: the layer before it."""
        self._has_all_masks = reads_masks and graph.is_whole and not graph.is_opaque
        self._losses: list[tuple[str, int]] = []
        self._is_data: dict[str, bool] = {}
        self._is_normalised: dict[str, bool] = {}
        self._bad_norms: list[str] = []
        """Norms that are given data."""
        self.half: frozenset[str] = frozenset()
        """Weights that are used in float16."""
        last: dict[str, tuple[str, Any]] = {}
        layers = {node for _, _, node in graph.layers} | set(graph.parts.get("norm", ()))
        normalised = {
            source_of(node.next_functions[0][0])
            for node in graph.parts.get("norm", ())
            if "BatchNorm" in node.name() and node.next_functions
        }
        data: Tensor | None = None
        for weight, name, node in graph.layers:
            site = names.get(weight)
            if site is None:
                continue
            if site in self.sites:
                last[site] = name, node
                continue
            if "BatchNorm" in name:
                x = saved(node, "input")
                if x is not None and x.dim() > 1:
                    self.batch_norm_samples[site] = x.numel() // max(x.shape[1], 1)
                    self._read_batch_norm(site, x.detach())
                continue
            x = input_of_layer(name, node)
            if x is not None and x.is_floating_point() and x.numel():
                self.sites.append(site)
                edge = input_edge(name, node)
                is_data = edge is None or not layers_below(edge, layers)
                channel = 1 if name == "Convolution" else -1
                self._add(("input", site), _about_input(x.detach(), channel, is_whole=is_data or is_alarm))
                self._is_data[site], self._is_normalised[site] = is_data, node in normalised
                data = x.detach() if data is None and is_data else data
                if x.dtype == torch.float16:
                    self.half |= {site}
        for site, (name, node) in last.items():
            x = input_of_layer(name, node)
            if x is not None and x.numel():
                self._add((_LAST, site), _rms(_some(x.detach())))
        for place, (name, node) in enumerate(graph.losses[:8]):
            self._read_loss(place, name, node, data)
        for node in graph.masks if reads_masks else ():
            self._read_mask(node, names)
        self._read_norms(graph, names)
        self.parts = PartsReading(graph, names, number, numbers)
        self.is_alarm = is_alarm
        self._weights: list[str] = []
        if is_alarm:
            self._read_weights(graph, names)

    def _read_norms(self, graph: ReadGraph, names: Mapping[int, str]) -> None:
        """Note whether data that norms are given is finite."""
        for node in graph.parts.get("norm", ()):
            x = saved(node, "input") if node.next_functions and node.next_functions[0][0] is None else None
            weight = node.next_functions[1][0] if x is not None and len(node.next_functions) > 1 else None
            site = names.get(id(getattr(weight, "variable", None)))
            if x is not None and site is not None and site not in self._bad_norms:
                self._add(("norm", site), _nonfinite(_some(x.detach())))
                self._bad_norms.append(site)

    def _read_weights(self, graph: ReadGraph, names: Mapping[int, str]) -> None:
        """Note which parameters are finite."""
        for key, leaf in graph.leaves.items():
            if key in names and leaf.is_floating_point() and leaf.layout is torch.strided and leaf.numel():
                self._add(("weight", names[key]), _nonfinite(leaf.detach()))
                self._weights.append(names[key])

    def nonfinite(self, order: Sequence[str]) -> NonfiniteFacts:
        """What is not finite, of a graph that was read with `is_alarm`; `order` is that of the model's parameters."""
        values = self._numbers.values()
        places = {name: place for place, name in enumerate(order)}
        bad = [name for name in self._weights if values["weight", self._number, name] > 0]
        inputs = [site for site in self.sites if values["input", self._number, site][3] > 0]
        norms = [site for site in self._bad_norms if values["norm", self._number, site] > 0]
        return NonfiniteFacts(
            step=self.step,
            inputs=(*norms, *(site for site in inputs if self._is_data[site])),
            has_bad_target=any(one.nonfinite > 0 for one in self.targets() if not one.is_difference),
            weights=tuple(sorted(bad, key=lambda name: places.get(name, len(places)))),
            num_weights=len(self._weights),
            layer=inputs[0] if inputs else "",
        )

    def inputs(self) -> dict[str, np.ndarray]:
        """By name, [sites]."""
        values = self._numbers.values()
        table = (
            np.stack([values["input", self._number, site] for site in self.sites])
            if self.sites
            else np.empty((0, len(_INPUT)))
        )
        flags = {
            "is_data": np.array([float(self._is_data[site]) for site in self.sites]),
            "is_normalised": np.array([float(self._is_normalised[site]) for site in self.sites]),
        }
        flags[_LAST] = np.array([float(values.get((_LAST, self._number, site), np.nan)) for site in self.sites])
        return dict(zip(_INPUT, table.T, strict=True)) | flags

    def targets(self) -> tuple[TargetFacts, ...]:
        """Of each loss function whose target was kept."""
        values, found = self._numbers.values(), []
        for number, (name, numel) in enumerate(self._losses):
            if ("target", self._number, number) not in values:
                continue
            mean, std, nonfinite = values["target", self._number, number]
            prediction = values.get(("prediction", self._number, number))
            counts = values.get(("counts", self._number, number))
            leak = values.get(("leak", self._number, number))
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
                    is_difference=name in ("Pow", "Abs"),
                    leak=None if leak is None else float(leak),
                    step=self.step,
                )
            )
        return tuple(found)

    def batch_norms(self) -> dict[str, tuple[int, float]]:
        """By weight of a batch norm: samples of the batch, and the noise of its means as a share of the spread."""
        values = self._numbers.values()
        return {site: (n, float(values["batch norm", self._number, site])) for site, n in self._batch_norms.items()}

    def masks(self) -> tuple[MaskFacts, ...] | None:
        """The products that are dropouts; None where some products could not be read."""
        values, found = self._numbers.values(), []
        for number, layer in enumerate(self._masks):
            kept, largest = (float(one) for one in values["mask", self._number, number])
            if largest > 1 and abs(kept * largest - 1) < _MASK_MARGIN:
                found.append(MaskFacts(layer=layer, dropped=1 - 1 / largest))
        return tuple(found) if self._has_all_masks else None

    def _read_batch_norm(self, site: str, x: Tensor) -> None:
        """The noise of a channel's mean over the batch, by the spread of the channel: how much a batch is a sample."""
        self._batch_norms[site] = len(x)
        x = x.to(torch.float32).flatten(2) if x.dim() > 2 else x.to(torch.float32)[:, :, None]
        spread = x.var((0, 2), unbiased=False)
        between = x.mean(2).var(0, unbiased=len(x) > 1)
        known = spread > 0
        noise = torch.where(known, between / torch.where(known, spread, 1.0), 0.0).mean() / len(x)
        self._numbers.add(("batch norm", self._number, site), noise.sqrt())

    def _read_mask(self, node: Any, names: Mapping[int, str]) -> None:
        """Begin to read the share of numbers that a product keeps, and what it multiplies these by."""
        mask = next((one for key in ("other", "self", "result1") if (one := saved(node, key)) is not None), None)
        if mask is None:
            self._has_all_masks &= plain_factor(node) is not None
            return
        p = getattr(node, "_saved_p", None)  # of the fused kernel, whose mask is of truth values
        if mask.dim() == 0 or not (mask.is_floating_point() or isinstance(p, float)):
            return
        if mask.numel() < _FEWEST_IN_MASK or len(self._masks) >= _MOST_MASKS:
            self._has_all_masks = False
            return
        layer = next((names[key] for key in leaves_before(node) if key in names), "")
        mask = _some(mask.detach()).to(torch.float32)
        kept = torch.count_nonzero(mask) / mask.numel()
        largest = mask.amax() / (1 - p if isinstance(p, float) and p < 1 else 1)
        self._numbers.add(("mask", self._number, len(self._masks)), torch.stack([kept, largest]))
        self._masks.append(layer)

    def _add(self, key: tuple[str, str | int], value: Tensor) -> None:
        self._numbers.add((key[0], self._number, key[1]), value)

    def _read_loss(self, number: int, name: str, node: Any, data: Tensor | None) -> None:
        target, prediction = saved(node, "target"), saved(node, "self")
        if name in ("Pow", "Abs"):
            target, prediction = prediction, None
        self._losses.append((name, target.numel() if target is not None else 0))
        if target is None or not target.numel():
            return
        target = _some(target.detach())
        wide = target.to(torch.float32)
        self._add(("target", number), torch.stack([wide.mean(), _std(wide), _nonfinite(wide)]))
        if data is not None and target.is_floating_point() and name not in ("Pow", "Abs"):
            leak = _leak(data, target)
            if leak is not None:
                self._add(("leak", number), leak)
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


def _about_input(x: Tensor, channel: int, *, is_whole: bool) -> Tensor:
    """[7] float32, in the order of `_INPUT`; without `is_whole` from some rows, without what is asked of data."""
    nonfinite = _nonfinite(x) if is_whole else x.new_zeros((), dtype=torch.float32)
    constant = _constant(_some(x, _MOST_COMPARED), channel)
    x = _some(x, _MOST_NUMBERS if is_whole else _MOST_HIDDEN).to(torch.float32)
    columns = x.new_ones(())
    if is_whole:
        x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    if is_whole and x.dim() >= 2:
        table = x if x.dim() == 2 else x.movedim(1, -1).flatten(0, -2)
        sizes = torch.linalg.vector_norm(table, dim=0) / table.count_nonzero(0).clamp(min=1).sqrt()
        columns = sizes.amax() / torch.where(sizes > 0, sizes, sizes.amax()).amin().clamp(min=1e-30)
    norm = torch.linalg.vector_norm(x)
    spread = torch.linalg.vector_norm(x - x.mean(0, keepdim=True)) / norm if len(x) > 1 else norm * torch.nan
    zeros = 1 - torch.count_nonzero(x) / x.numel()
    largest = torch.linalg.vector_norm(x, torch.inf)
    return torch.stack([norm / x.numel() ** 0.5, largest, zeros, nonfinite, spread, columns, constant.float()])


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.to(torch.float32)) / x.numel() ** 0.5


def _constant(x: Tensor, channel: int) -> Tensor:
    """The share of channels in which all numbers are the same."""
    if x.dim() < 2 or x.numel() == x.shape[channel]:
        return torch.full((), torch.nan, device=x.device)
    smallest, largest = torch.aminmax(x.movedim(channel, 0).flatten(1), dim=1)
    return 1 - torch.count_nonzero(largest - smallest) / len(smallest)


def _leak(data: Tensor, target: Tensor) -> Tensor | None:
    """The largest correlation, without its sign, of a number of the input with one of the target, over the batch.

    A target as wide as pictures is not judged: that of an autoencoder is its input.
    """
    batch, width = len(target) if target.dim() else 0, target.numel() // max(len(target), 1) if target.dim() else 0
    if batch < 16 or width > _WIDEST_TARGET or data.dim() < 2 or len(data) % batch:
        return None
    y = target.reshape(batch, width).float()
    ways = [data.reshape(batch, -1)]
    if len(data) != batch:  # steps of a sequence lie in the first dimension too: before the samples, or after them
        ways.append(data.reshape(len(data) // batch, batch, -1).transpose(0, 1).flatten(1))
    return torch.stack([_largest_correlation(x[:, -_PLACES_OF_DATA:].float(), y) for x in ways]).amax()


def _largest_correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    sizes = torch.linalg.vector_norm(x, dim=0)[:, None] * torch.linalg.vector_norm(y, dim=0)
    return ((x.T @ y).abs() / sizes.clamp(min=1e-20)).amax()


def _spread(x: Tensor) -> Tensor:
    """The root mean square of what differs over the first dimension, by that of the whole."""
    if x.dim() < 1 or len(x) < 2:
        return torch.full((), torch.nan, device=x.device)
    apart = torch.linalg.vector_norm(x - x.mean(0, keepdim=True))
    return apart / torch.linalg.vector_norm(x)


def _std(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x - x.mean()) / x.numel() ** 0.5


def _nonfinite(x: Tensor) -> Tensor:
    return torch.count_nonzero(x - x != 0).to(torch.float32)


def _some(x: Tensor, most: int = _MOST_NUMBERS) -> Tensor:
    """The tensor, or evenly spread rows of a large one, eight at least."""
    if x.numel() <= most or x.dim() == 0:
        return x
    return x[:: max(1, min(-(-x.numel() // most), len(x) // _FEWEST_ROWS))]
