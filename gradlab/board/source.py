"""Where the board gets its series from: the protocol, and TensorBoard's data provider behind it.

Belongs here: lists and reads of whole series, and the cache of what was read. Does not: what a series means (`series`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboard.data import provider

EVERYTHING = 10**9
"""A provider wants a number of points that it may not exceed."""
_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Listed:
    """A series, unread."""

    content: bytes
    """What its first record says of it."""
    last_step: int
    last_time: float


@dataclass(frozen=True)
class Points:
    """A series, read: its steps in order and a value each."""

    steps: np.ndarray
    """[n] int64."""
    times: np.ndarray
    """[n] float64, seconds since the epoch."""
    values: Any
    """[n, ...] where all values have one shape, else a list of arrays."""


class Source(Protocol):
    """Where series come from."""

    kept_steps: int
    """How many steps of a series there are at most, above which they are a random sample; 0: all of them."""

    def runs(self) -> list[str]:
        """The names of the runs."""

    def list(self, plugin: str, run: str | None = None) -> Mapping[str, Mapping[str, Listed]]:
        """The tensor series of a plugin, by run and tag."""

    def read(self, plugin: str, run: str, tag: str) -> Points:
        """A tensor series; empty where there is none."""

    def list_scalars(self, run: str | None = None) -> Mapping[str, Mapping[str, Listed]]:
        """The scalar series, by run and tag."""

    def read_scalar(self, run: str, tag: str) -> Points:
        """A scalar series; empty where there is none."""

    def folder(self, run: str) -> Path | None:
        """Where the event files of a run lie, where they lie in a folder of this machine."""


EMPTY = Points(np.empty(0, np.int64), np.empty(0), [])


def points(steps: list[int], times: list[float], values: list[Any]) -> Points:
    """A series out of lists, in order of steps, its values stacked where they have one shape."""
    at = np.array(steps, np.int64)
    if len(at) > 1 and (np.diff(at) < 0).any():
        # TensorBoard's Python loader keeps both branches of a run that was resumed; the later one holds.
        order = np.argsort(at, kind="stable")
        at, values, times = at[order], [values[i] for i in order], [times[i] for i in order]
    last = np.append(np.diff(at) != 0, True) if len(at) else np.empty(0, bool)
    if not last.all():
        keep = np.flatnonzero(last)
        at, values, times = at[keep], [values[i] for i in keep], [times[i] for i in keep]
    arrays = [np.asarray(value) for value in values]
    same = arrays and arrays[0].dtype != object and all(one.shape == arrays[0].shape for one in arrays)
    return Points(at, np.array(times, np.float64), np.stack(arrays) if same else arrays)


class Cache:
    """Series that were read, the least recently asked for forgotten first. Safe to share between threads."""

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self._kept: OrderedDict[tuple[str, ...], tuple[Any, Points, int]] = OrderedDict()
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ...], stamp: Any) -> Points | None:
        """What is kept under `key`, unless it has changed since."""
        with self._lock:
            found = self._kept.get(key)
            if found is None or found[0] != stamp:
                return None
            self._kept.move_to_end(key)
            return found[1]

    def put(self, key: tuple[str, ...], stamp: Any, value: Points) -> None:
        """Keep `value`."""
        size = value.values.nbytes if isinstance(value.values, np.ndarray) else 1000 * len(value.steps)
        with self._lock:
            old = self._kept.pop(key, None)
            self._bytes += size - (old[2] if old else 0)
            self._kept[key] = (stamp, value, size)
            while self._bytes > self._most and len(self._kept) > 1:
                _, (_, _, freed) = self._kept.popitem(last=False)
                self._bytes -= freed


class ProviderSource:
    """Series through TensorBoard's data provider: the same with both of its loaders. Made anew for each request."""

    def __init__(
        self, data: Any, context: Any, experiment: str, logdir: Path | None, kept_steps: int, cache: Cache
    ) -> None:
        self.kept_steps = kept_steps
        self._data, self._logdir, self._cache, self._experiment = data, logdir, cache, experiment
        self._ask = {"ctx": context, "experiment_id": experiment}

    def runs(self) -> list[str]:
        """The names of the runs."""
        return [run.run_name for run in self._data.list_runs(**self._ask)]

    def list(self, plugin: str, run: str | None = None, tag: str | None = None) -> dict[str, dict[str, Listed]]:
        """The tensor series of a plugin, by run and tag."""
        return _listed(self._data.list_tensors(**self._ask, plugin_name=plugin, run_tag_filter=_only(run, tag)))

    def read(self, plugin: str, run: str, tag: str) -> Points:
        """A tensor series; empty where there is none."""
        return self._read(plugin, run, tag, self.list(plugin, run, tag), self._data.read_tensors, "numpy")

    def list_scalars(self, run: str | None = None, tag: str | None = None) -> dict[str, dict[str, Listed]]:
        """The scalar series, by run and tag."""
        return _listed(self._data.list_scalars(**self._ask, plugin_name="scalars", run_tag_filter=_only(run, tag)))

    def read_scalar(self, run: str, tag: str) -> Points:
        """A scalar series; empty where there is none."""
        return self._read("scalars", run, tag, self.list_scalars(run, tag), self._data.read_scalars, "value")

    def folder(self, run: str) -> Path | None:
        """Where the event files of a run lie: its name is the path below the logdir."""
        folder = self._logdir / run if self._logdir is not None else None
        return folder if folder is not None and folder.is_dir() else None

    def _read(self, plugin: str, run: str, tag: str, listed: Any, read: Any, attribute: str) -> Points:
        series = listed.get(run, {}).get(tag)
        if series is None:
            return EMPTY
        key, stamp = (self._experiment, plugin, run, tag), (series.last_step, series.last_time)
        found = self._cache.get(key, stamp)
        if found is None:
            found_all = read(**self._ask, plugin_name=plugin, downsample=EVERYTHING, run_tag_filter=_only(run, tag))
            data = found_all.get(run, {}).get(tag, [])
            found = points(
                [one.step for one in data], [one.wall_time for one in data], [getattr(one, attribute) for one in data]
            )
            self._cache.put(key, stamp, found)
        return found


def _only(run: str | None, tag: str | None) -> provider.RunTagFilter:
    return provider.RunTagFilter(runs=None if run is None else [run], tags=None if tag is None else [tag])


def _listed(found: Any) -> dict[str, dict[str, Listed]]:
    return {
        run: {tag: Listed(one.plugin_content, one.max_step, one.max_wall_time) for tag, one in tags.items()}
        for run, tags in found.items()
    }
