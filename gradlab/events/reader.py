"""Read event files back as plain values, ours and other writers'."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.errors import EventError
from gradlab.events import decode
from gradlab.events.tfrecord import read_records

_NATIVE_PLUGINS = {"scalar": "scalars", "image": "images", "histogram": "histograms"}


@dataclass(frozen=True)
class EventValue:
    """One value of one tag at one step."""

    step: int
    wall_time: float
    """Seconds since the epoch."""
    tag: str
    plugin_name: str
    """Whose series it is: `scalars`, `images`, `text`, `histograms`, `hparams`, `gradlab`, ..."""
    value: np.ndarray | float | bytes | None
    """A float for a native scalar; an array for a tensor, of bytes objects where it holds strings; for other writers'
    pictures a PNG file, for their histograms a HistogramProto; None for a kind that is not read."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the tag's first value says of the series, where that is JSON."""
    content: bytes = b""
    """The same as it stands, JSON or not."""


def read_events(path: str | os.PathLike[str]) -> Iterator[EventValue]:
    """The values of one event file, in the order in which they were written.

    A record cut off at the end, as after a crash or while the file is being written, is left out.

    Raises:
        EventError: if the file cannot be read or is damaged, after yielding what is sound; the message has the byte.
    """
    path = Path(path)
    series: dict[str, tuple[str, bytes, Mapping[str, Any]]] = {}
    for index, payload in enumerate(read_records(path)):
        try:
            event = decode.event(payload)
        except (ValueError, UnicodeDecodeError) as error:
            raise EventError(f"{path}: record {index} is not a TensorBoard event: {error}.") from error
        for one in event.values:
            if one.tag not in series:
                series[one.tag] = _describe(one)
            plugin_name, content, metadata = series[one.tag]
            yield EventValue(event.step, event.wall_time, one.tag, plugin_name, one.value, metadata, content)


def event_files(logdir: str | os.PathLike[str]) -> list[Path]:
    """The event files of one run's folder, oldest first; not those of folders inside it."""
    return sorted(path for path in Path(logdir).glob("*tfevents*") if path.is_file())


def _describe(value: decode.Value) -> tuple[str, bytes, Mapping[str, Any]]:
    """Plugin name, raw metadata and parsed metadata of the series that begins with `value`."""
    found = value.metadata or decode.Metadata()
    return found.plugin_name or _NATIVE_PLUGINS.get(value.kind, ""), found.content, _parse(found.content)


def _parse(content: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
