"""A metric of a run as cells: which tags hold it, which level of the pyramid to read, one table out of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.board import pooling as table
from gradlab.board.pooling import Cells
from gradlab.board.source import Listed, Points, Source
from gradlab.tags import SERIES_PLUGIN

VERSION = 1
"""The newest version of a tag's metadata that this board knows."""


@dataclass
class Schema:
    """One set of sites under which a metric was logged."""

    tag: str
    sites: tuple[str, ...]
    last_step: int
    levels: dict[int, str] = field(default_factory=dict)
    """The pyramid: steps of a block -> tag."""
    level_steps: dict[int, int] = field(default_factory=dict)
    """The last step of each level."""


@dataclass
class Metric:
    """All that a run has of a metric."""

    name: str
    unit: str = ""
    edges: tuple[float, ...] = ()
    schemas: list[Schema] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The newest step."""
        return max(schema.last_step for schema in self.schemas)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of all schemas, in forward order."""
        return ordered(schema.sites for schema in self.schemas)


@dataclass(frozen=True)
class Loaded:
    """Cells, and how true they are to the steps."""

    sites: tuple[str, ...]
    cells: Cells
    block: int
    """How many logged steps a column holds before pooling: 1, or the size of a block of the pyramid."""
    sampled: bool
    """Whether TensorBoard kept a sample of the steps only, and there was no pyramid to make up for it."""


def metrics_of(listed: Mapping[str, Listed]) -> tuple[dict[str, Metric], list[str]]:
    """The metrics of a run, and sentences about what could not be read."""
    metrics: dict[str, Metric] = {}
    schemas: dict[str, Schema] = {}
    blocks, notes = [], set()
    for tag, series in listed.items():
        about = parsed(series.content)
        if about.get("version", 0) > VERSION:
            notes.add(newer_note(about["version"]))
        if "of" in about and "steps" in about:
            blocks.append((about["of"], int(about["steps"]), tag, series.last_step))
        elif isinstance(about.get("metric"), str) and isinstance(about.get("sites"), list):
            metric = metrics.setdefault(about["metric"], Metric(about["metric"]))
            metric.unit = str(about.get("unit", ""))
            metric.edges = tuple(about.get("edges", ()))
            schemas[tag] = Schema(tag, tuple(map(str, about["sites"])), series.last_step)
            metric.schemas.append(schemas[tag])
        else:
            notes.add(f"{tag} does not say which sites it holds, so it is not shown.")
    for of, steps, tag, last_step in blocks:
        if of in schemas:
            schemas[of].levels[steps], schemas[of].level_steps[steps] = tag, last_step
    for metric in metrics.values():
        metric.schemas.sort(key=lambda schema: schema.last_step)
    return metrics, sorted(notes)


def newer_note(version: object) -> str:
    """What the page says of a log that is newer than this board."""
    return (
        f"This run was logged by a newer gradlab (format {version}; this board knows {VERSION}). What it can read is "
        "shown; `pip install -U gradlab` brings the rest."
    )


def parsed(content: bytes) -> dict[str, Any]:
    """A series' metadata, empty where it is not ours."""
    try:
        about = json.loads(content)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def ordered(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The names of all lists, each where its neighbours of the longest list are."""
    by_length = sorted(lists, key=len, reverse=True)
    result = list(by_length[0])
    for names in by_length[1:]:
        known = set(result)
        at = -1
        for name in names:
            if name in known:
                at = result.index(name)
            else:
                at += 1
                result.insert(at, name)
                known.add(name)
    return tuple(result)


def load(
    source: Source,
    run: str,
    metric: Metric,
    *,
    num_columns: int,
    start: int | None = None,
    end: int | None = None,
    only: str | None = None,
) -> Loaded:
    """A metric of a run between two steps, at most `num_columns` columns.

    Args:
        source: where from.
        run: its name.
        metric: one of `metrics_of`.
        num_columns: how many there is room for.
        start: the first step, or None for the run's.
        end: the last step, or None for the run's.
        only: a site, where the others are not wanted.
    """
    schemas = [schema for schema in metric.schemas if only is None or only in schema.sites]
    parts, block, sampled = [], 1, False
    for schema in schemas:
        found = _schema_cells(source, run, schema, num_columns, start, end)
        cells, size, was_sampled = found
        if only is not None:
            cells = cells.sites([schema.sites.index(only)])
        if len(cells):
            parts.append(((only,) if only is not None else schema.sites, cells))
        block, sampled = max(block, size), sampled or was_sampled
    sites = (only,) if only is not None else metric.sites
    if not parts:
        return Loaded(sites, _nothing(len(sites)), 1, sampled)
    merged = table.merge(parts, sites)
    return Loaded(sites, table.pool(merged, num_columns, start, end), block, sampled)


def _schema_cells(
    source: Source, run: str, schema: Schema, num_columns: int, start: int | None, end: int | None
) -> tuple[Cells, int, bool]:
    """The coarsest level that still has as many columns as there is room for; what it lacks at the end, from below."""
    chosen = None
    for size in sorted(schema.levels, reverse=True):
        blocks = source.read(SERIES_PLUGIN, run, schema.levels[size])
        if _is_sampled(source, blocks) and chosen is not None:
            return _with_tail(source, run, schema, *chosen, start, end)
        if not len(blocks.steps) or not isinstance(blocks.values, np.ndarray):
            continue
        found = table.within(table.from_blocks(blocks.steps, blocks.values), start, end)
        chosen = (found, size)
        if len(found) >= num_columns / 2:
            return _with_tail(source, run, schema, *chosen, start, end)
    base = source.read(SERIES_PLUGIN, run, schema.tag)
    sampled = _is_sampled(source, base)
    if sampled and chosen is not None:
        return _with_tail(source, run, schema, *chosen, start, end)
    return table.within(_base_cells(base, schema), start, end), 1, sampled


def _with_tail(
    source: Source, run: str, schema: Schema, blocks: Cells, size: int, start: int | None, end: int | None
) -> tuple[Cells, int, bool]:
    """Blocks, and the steps after the last of them: those of a run that still goes on."""
    reached = schema.level_steps[size]
    if schema.last_step <= reached or (end is not None and end <= reached):
        return blocks, size, False
    parts = [blocks] if len(blocks) else []
    for finer in sorted((level for level in schema.levels if level < size), reverse=True):
        points = source.read(SERIES_PLUGIN, run, schema.levels[finer])
        if isinstance(points.values, np.ndarray):
            cells = table.from_blocks(points.steps, points.values)
            parts.append(cells.columns(cells.first > reached))
            reached = max(reached, int(points.steps[-1]))
    base = _base_cells(source.read(SERIES_PLUGIN, run, schema.tag), schema)
    parts.append(base.columns(base.first > reached))
    return table.within(table.join(parts), start, end), size, False


def _base_cells(points: Points, schema: Schema) -> Cells:
    if not isinstance(points.values, np.ndarray) or points.values.ndim != 2:
        return _nothing(len(schema.sites))
    if points.values.shape[1] != len(schema.sites):
        return _nothing(len(schema.sites))
    return table.from_values(points.steps, points.values)


def _is_sampled(source: Source, points: Points) -> bool:
    return 0 < source.kept_steps <= len(points.steps)


def _nothing(num_sites: int) -> Cells:
    empty = np.empty((0, num_sites), np.float32)
    steps = np.empty(0, np.int64)
    return Cells(steps, steps, empty, empty, empty, np.empty((0, num_sites), np.uint32))
