"""The metrics of one run read as cells: which level of the pyramid is enough, and one table out of several tags.

Belongs here: reading the values of a metric over a range of steps. Does not: what metrics there are (`metrics`), or the
arithmetic of cells (`pooling`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradlab.board import pooling
from gradlab.board.metrics import Metric, Schema, metrics_of
from gradlab.board.pooling import Cells
from gradlab.board.source import Points, Source
from gradlab.errors import UsageError, did_you_mean
from gradlab.frame import is_absent
from gradlab.tags import SERIES_PLUGIN


@dataclass(frozen=True)
class Range:
    """Steps from the first to the last that are wanted, and how many columns there is room for."""

    num_columns: int
    start: int | None = None
    """None for the first step of the run."""
    end: int | None = None
    """None for the last step of the run."""

    def cut(self, cells: Cells) -> Cells:
        """The columns between the two steps."""
        return pooling.within(cells, self.start, self.end)

    def pool(self, cells: Cells) -> Cells:
        """As many columns as there is room for."""
        return pooling.pool(cells, self.num_columns, self.start, self.end)


@dataclass(frozen=True)
class Loaded:
    """Cells, and how true they are to the steps."""

    sites: tuple[str, ...]
    cells: Cells
    block: int
    """How many logged steps a column holds before pooling: 1, or the size of a block of the pyramid."""
    sampled: bool
    """Whether TensorBoard kept a sample of the steps only, and there was no pyramid to make up for it."""


class RunReader:
    """Reads the metrics of one run."""

    def __init__(self, source: Source, run: str) -> None:
        self.run = run
        self._source = source

    def metrics(self) -> dict[str, Metric]:
        """Every metric of the run by its name."""
        found, _ = metrics_of(self._source.list(SERIES_PLUGIN, self.run).get(self.run, {}))
        return found

    def metric(self, name: str) -> Metric:
        """A metric with one number a site.

        Raises:
            UsageError: where the run has none of that name, or it holds histograms.
        """
        known = self.metrics()
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(f"{self.run} has no metric {name!r}.{near} It has: {', '.join(known) or 'none'}.")
        if known[name].edges:
            raise UsageError(f"{name} holds histograms, which have no place in the flow; choose a site to see them.")
        return known[name]

    def load(self, metric: Metric, steps: Range, *, only: str | None = None) -> Loaded:
        """A metric over a range of steps; `only` one of its sites, where the others are not wanted."""
        schemas = [schema for schema in metric.schemas if only is None or only in schema.sites]
        parts, block, sampled = [], 1, False
        for schema in schemas:
            cells, size, was_sampled = self._schema_cells(schema, steps)
            if only is not None:
                cells = cells.sites([schema.sites.index(only)])
            if len(cells):
                parts.append(((only,) if only is not None else schema.sites, cells))
            block, sampled = max(block, size), sampled or was_sampled
        sites = (only,) if only is not None else metric.sites
        if not parts:
            return Loaded(sites, _nothing(len(sites)), 1, sampled)
        return Loaded(sites, steps.pool(pooling.merge(parts, sites)), block, sampled)

    def histogram(self, metric: Metric, site: str, num_columns: int) -> tuple[np.ndarray, np.ndarray]:
        """First steps [columns] and counts [columns, bins] of a site; summed where there are too many steps."""
        steps, counts = [], []
        for schema in metric.schemas:
            found = self._read(schema.tag)
            if site in schema.sites and isinstance(found.values, np.ndarray) and found.values.ndim == 3:
                values = found.values[:, schema.sites.index(site)]
                present = ~is_absent(values).all(1)
                steps.append(found.steps[present])
                counts.append(values[present])
        at, table = np.concatenate(steps), np.concatenate(counts).astype(np.float32)
        order = np.argsort(at, kind="stable")
        at, table = at[order], table[order]
        if len(at) > num_columns:
            starts = np.arange(num_columns) * len(at) // num_columns
            table, at = np.add.reduceat(table, starts, axis=0), at[starts]
        return at, table

    def _schema_cells(self, schema: Schema, steps: Range) -> tuple[Cells, int, bool]:
        """The coarsest level with as many columns as there is room for; what it lacks at the end, from finer ones."""
        chosen = None
        for size in sorted(schema.levels, reverse=True):
            blocks = self._read(schema.levels[size])
            if self._is_sampled(blocks) and chosen is not None:
                return self._with_tail(schema, *chosen, steps)
            if not len(blocks.steps) or not isinstance(blocks.values, np.ndarray):
                continue
            found = steps.cut(pooling.from_blocks(blocks.steps, blocks.values))
            chosen = (found, size)
            if len(found) >= steps.num_columns / 2:
                return self._with_tail(schema, *chosen, steps)
        base = self._read(schema.tag)
        sampled = self._is_sampled(base)
        if sampled and chosen is not None:
            return self._with_tail(schema, *chosen, steps)
        return steps.cut(_base_cells(base, schema)), 1, sampled

    def _with_tail(self, schema: Schema, blocks: Cells, size: int, steps: Range) -> tuple[Cells, int, bool]:
        """Blocks, and the steps after the last of them: those of a run that still goes on."""
        reached = schema.level_steps[size]
        if schema.last_step <= reached or (steps.end is not None and steps.end <= reached):
            return blocks, size, False
        parts = [blocks] if len(blocks) else []
        for finer in sorted((level for level in schema.levels if level < size), reverse=True):
            points = self._read(schema.levels[finer])
            if isinstance(points.values, np.ndarray):
                cells = pooling.from_blocks(points.steps, points.values)
                parts.append(cells.columns(cells.first > reached))
                reached = max(reached, int(points.steps[-1]))
        base = _base_cells(self._read(schema.tag), schema)
        parts.append(base.columns(base.first > reached))
        return steps.cut(pooling.join(parts)), size, False

    def _read(self, tag: str) -> Points:
        return self._source.read(SERIES_PLUGIN, self.run, tag)

    def _is_sampled(self, points: Points) -> bool:
        """Whether TensorBoard holds as many steps as it keeps, so that others may be missing between them."""
        return 0 < self._source.kept_steps <= len(points.steps)


def _base_cells(points: Points, schema: Schema) -> Cells:
    if not isinstance(points.values, np.ndarray) or points.values.ndim != 2:
        return _nothing(len(schema.sites))
    if points.values.shape[1] != len(schema.sites):
        return _nothing(len(schema.sites))
    return pooling.from_values(points.steps, points.values)


def _nothing(num_sites: int) -> Cells:
    empty = np.empty((0, num_sites), np.float32)
    steps = np.empty(0, np.int64)
    return Cells(steps, steps, empty, empty, empty, np.empty((0, num_sites), np.uint32))
