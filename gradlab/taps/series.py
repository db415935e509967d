"""Series: the values of a step, once they are on the host, as the named series of a frame.

The slots of a step come from one process or from all ranks (`Copy`). They are combined over the passes of the step,
made into statistics, freed of the loss scale, and named. Metrics that follow from others are added here too: the
gradient noise scale, the update-to-weight ratio and the gain of a module.

Does not belong here: which slots there are (`plan`), and the formulas of the statistics (`gradlab.stats`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gradlab.frame import ABSENT, Schema, Series, is_absent
from gradlab.stats.combine import combine, shift_bins
from gradlab.stats.derive import UNITS, derive, parts_of
from gradlab.stats.noise_scale import noise_scale
from gradlab.stats.parts import HIST_EDGES
from gradlab.taps.buffer.layout import Entry, padded, slots_of

PER_RANK_LABELS = ("output", "output_grad", "weight_grad@micro")
"""What differs from rank to rank, and can be logged of each."""
_SCALED_STATS = frozenset({"norm", "rms", "mean", "std", "max_abs"})
"""The statistics of a gradient that grow with the loss scale, and so are divided by it."""

Values = tuple[np.ndarray, np.ndarray | None]
"""[sites] or [sites, bins] values of a metric, and [sites] bool, where it has none; None where it has all."""


class Copy(Protocol):
    """The values of a step on their way to the host: of this process (`HostCopy`), or of all ranks (`ReducedCopy`)."""

    @property
    def world_size(self) -> int:
        """How many ranks these values are from."""

    @property
    def numel(self) -> Sequence[Any]:
        """For each row, the number of elements of each entry, once `rows` has been called."""

    def done(self) -> bool:
        """Whether `rows` need not wait."""

    def rows(self) -> list[np.ndarray]:
        """One array a row, [slots]."""

    def micro_squares(self, indices: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The squared norms of single backwards added up, and how many these are; None where there can be only one.

        Args:
            indices: [n] of the entries of single backwards (stage `micro`).
            slots: [n] of their norms.
        Returns:
            [n] float64 and [n] float64.
        """

    def norms_by_rank(self, indices: np.ndarray) -> np.ndarray | None:
        """[ranks, n] float64, each rank's own norms of entries, negative where it has none; None of one process."""


class _Metric:
    """One metric's schema, and where its values are in a row."""

    def __init__(self, label: str, stat: str, entries: Sequence[Entry]) -> None:
        self.label = label
        """The quantity, with `@stage` where that is not `final`."""
        self.stat = stat
        self.is_micro = entries[0].is_micro
        edges = HIST_EDGES if stat == "hist" else ()
        self.schema = Schema(_metric_name(label, stat), tuple(e.site for e in entries), UNITS.get(stat, ""), edges)
        self.indices = np.array([entry.index for entry in entries])
        self.slots = {part: slots_of(part, entries) for part in parts_of((stat,))}


class SeriesMaker:
    """Makes series from the rows of one step after another, by index arrays that are worked out once.

    Args:
        metrics: the entries of each pair of label and stat.
        per_rank: the entries whose norms are logged of each rank.
        loss_scale: the entry of the loss scale.
    """

    def __init__(
        self, metrics: Mapping[tuple[str, str], Sequence[Entry]], per_rank: Sequence[Entry], loss_scale: Entry
    ) -> None:
        self._metrics = [_Metric(label, stat, entries) for (label, stat), entries in metrics.items() if entries]
        by_label = ((label, [one for one in per_rank if one.label == label]) for label in PER_RANK_LABELS)
        self._per_rank = [_Metric(label, "norm", entries) for label, entries in by_label if entries]
        self._loss_scale = loss_scale
        self._numel: list[float] = []
        self._counts: list[Values] = []

    def make(self, copy: Copy, scaled: frozenset[str]) -> dict[str, Series]:
        """The series of a step.

        Args:
            copy: its values; waits for them.
            scaled: the labels of the quantities that carry the loss scale, which is taken out.
        """
        rows = copy.rows()
        scale = float(rows[0][self._loss_scale.start]) if copy.numel[0][self._loss_scale.index] else 1.0
        values = self._of_one(rows[0], copy.numel[0]) if len(rows) == 1 else self._of_several(rows, copy.numel)
        result = {}
        for metric, (numbers, absent) in zip(self._metrics, values, strict=True):
            if scale != 1.0 and metric.label in scaled:
                if metric.stat in _SCALED_STATS:
                    numbers = numbers / scale
                elif metric.stat == "hist":
                    numbers = shift_bins(numbers, round(np.log2(scale)))
            if metric.stat == "hist" and metric.label == "output_grad":  # of the local loss, which is not the mean's
                numbers = shift_bins(numbers, round(np.log2(copy.world_size)))
            if numbers.dtype != np.float32:
                with np.errstate(over="ignore"):
                    numbers = numbers.astype(np.float32)
            if absent is not None:
                numbers[absent] = ABSENT
            numbers.setflags(write=False)  # so that the series takes it as it is
            result[metric.schema.metric] = Series(metric.schema, numbers)
        for metric in self._per_rank:
            if (norms := copy.norms_by_rank(metric.indices)) is not None:
                one = _of_each_rank(metric, norms, scale if metric.label in scaled else 1.0)
                result[one.schema.metric] = one
        if (noise := self._noise_scale(copy, result, scale)) is not None:
            result[noise.schema.metric] = noise
        return result

    def _noise_scale(self, copy: Copy, series: Mapping[str, Series], scale: float) -> Series | None:
        """The gradient noise scale, where the norms of single backwards and of their sum are both watched."""
        micro = next((m for m in self._metrics if (m.label, m.stat) == ("weight_grad@micro", "norm")), None)
        final = series.get("weight_grad.norm")
        if micro is None or final is None or final.schema.sites != micro.schema.sites:
            return None
        if (backwards := copy.micro_squares(micro.indices, micro.slots["norm"])) is None:
            return None
        squares, times = backwards
        total = final.array.astype(np.float64) * copy.world_size  # the sum over ranks, whose mean is the gradient
        scales = noise_scale(squares / scale**2, times, total)
        return Series(Schema("noise_scale", (*final.schema.sites, "all parameters"), "micro-batches"), scales)

    def _of_one(self, row: np.ndarray, numel: list[float]) -> Iterator[Values]:
        """The values of the usual step, which is one pass. Norms are taken as they are."""
        if numel != self._numel:
            self._numel = numel
            self._counts = []
            for metric in self._metrics:
                counts = _take(np.array(numel, np.float64), metric.indices)
                self._counts.append((counts.clip(0), counts == 0 if (counts == 0).any() else None))
        for metric, (counts, absent) in zip(self._metrics, self._counts, strict=True):
            parts = {part: _take(row, slots) for part, slots in metric.slots.items()}
            if metric.stat != "norm":
                parts = {part: piece.astype(np.float64) for part, piece in parts.items()}
            yield derive(metric.stat, parts, counts), absent

    def _of_several(self, rows: Sequence[np.ndarray], numel: Sequence[list[float]]) -> Iterator[Values]:
        """The values of a step of several passes: those of the passes' concatenation."""
        for metric in self._metrics:
            counts = np.stack([_take(np.array(n, np.float64), metric.indices) for n in numel])
            pieces = {
                part: np.stack([_take(row, slots) for row in rows]).astype(np.float64)
                for part, slots in metric.slots.items()
            }
            absent, counts = (counts == 0).all(axis=0), counts.clip(0)
            if metric.is_micro:  # one backward: the last
                last = len(counts) - 1 - np.argmax(counts[::-1] > 0, axis=0)
                total = np.take_along_axis(counts, last[None], axis=0)[0]
                whole = {part: _rows_at(piece, last) for part, piece in pieces.items()}
            else:
                total = counts.sum(axis=0)
                whole = {part: combine(part, pieces, counts) for part in pieces}
            yield derive(metric.stat, whole, total), absent


def _of_each_rank(metric: _Metric, norms: np.ndarray, scale: float) -> Series:
    """`<quantity>.norm@ranks`: the norm at each site on each rank, and of each rank's gradient as a whole.

    Args:
        metric: whose norms these are.
        norms: [ranks, sites] float64, negative where a rank has none.
        scale: what they are divided by.
    """
    sites, absent = metric.schema.sites, norms < 0
    norms = norms / scale
    with np.errstate(over="ignore"):
        if metric.label.startswith("weight_grad"):
            whole = np.sqrt(np.square(np.where(absent, 0.0, norms)).sum(1, keepdims=True))
            norms, sites = np.hstack([whole, norms]), ("all parameters", *sites)
            absent = np.hstack([absent.all(1, keepdims=True), absent])
        values = norms.T.ravel().astype(np.float32)
    values[absent.T.ravel()] = ABSENT
    names = tuple(f"{site}@rank{rank}" for site in sites for rank in range(len(norms)))
    return Series(Schema(f"{metric.label.partition('@')[0]}.norm@ranks", names), values)


def _metric_name(label: str, stat: str) -> str:
    quantity, at, stage = label.partition("@")
    return f"{quantity}.{stat}{at}{stage}"


def _take(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`values[where]`, with 0 beyond the end of a row that is shorter than the layout is by now."""
    return padded(values, int(where.flat[-1]) + 1)[where]


def _rows_at(pieces: np.ndarray, which: np.ndarray) -> np.ndarray:
    """`pieces[which[site], site]` of [pieces, sites] or [pieces, sites, bins]."""
    return np.asarray(pieces[which, np.arange(pieces.shape[1])])


def with_derived(series: Mapping[str, Series]) -> dict[str, Series]:
    """`series`, and what follows from them.

    `update_ratio` is ‖Δw‖ / ‖w‖ of each parameter, w being the weights that the gradient was taken at, where both norms
    are watched. A ratio near 1e-3 is usual for a matrix under Adam or SGD with momentum.
    """
    result = dict(series)
    update, weight = series.get("update.norm"), series.get("weight.norm")
    if update is not None and weight is not None and update.schema.sites == weight.schema.sites:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = update.array / weight.array
        ratio[is_absent(update.array) | is_absent(weight.array)] = ABSENT
        result["update_ratio"] = Series(Schema("update_ratio", update.schema.sites), ratio)
    if (gains := _gains(series.get("output_grad.norm"))) is not None:
        result["gain"] = gains
    return result


def _gains(gradients: Series | None) -> Series | None:
    """‖∂L/∂input‖ / ‖∂L/∂output‖ of each site whose input is watched too."""
    if gradients is None:
        return None
    places = {site: index for index, site in enumerate(gradients.schema.sites)}
    sites = [site for site in places if f"{site}:in" in places]
    if not sites:
        return None
    output = gradients.array[[places[site] for site in sites]]
    into = gradients.array[[places[f"{site}:in"] for site in sites]]
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = into / output
    gain[is_absent(output) | is_absent(into)] = ABSENT
    return Series(Schema("gain", tuple(sites)), gain)
