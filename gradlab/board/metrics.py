"""The metrics of a run: which tags hold each, under which sites and on which levels of the pyramid.

Belongs here: what the metadata of tags says. Does not: their values (`reader`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlab.board.source import Listed

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
