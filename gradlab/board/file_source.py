"""A run's event files read without TensorBoard, for the report: every step, nothing sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.board.source import EMPTY, Listed, Points, points
from gradlab.errors import EventError
from gradlab.events import event_files, read_events


class FileSource:
    """The event files of one folder as a source with one run. What is damaged ends that file, with a note."""

    kept_steps = 0

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._series: dict[str, dict[str, list[Any]]] = {}
        self._content: dict[tuple[str, str], bytes] = {}
        for file in event_files(folder):
            try:
                for event in read_events(file):
                    series = self._series.setdefault(event.plugin_name, {}).setdefault(event.tag, [])
                    series.append((event.step, event.wall_time, event.value))
                    self._content.setdefault((event.plugin_name, event.tag), event.content)
            except EventError:
                continue  # `health` says so in the page

    def runs(self) -> list[str]:
        """The one run."""
        return [self._name]

    def list(self, plugin: str, run: str | None = None) -> Mapping[str, Mapping[str, Listed]]:
        """The series of a plugin."""
        found = self._series.get(plugin, {})
        return {
            self._name: {
                tag: Listed(self._content[plugin, tag], max(one[0] for one in series), series[-1][1])
                for tag, series in found.items()
            }
        }

    def read(self, plugin: str, run: str, tag: str) -> Points:
        """A series; empty where there is none."""
        series = self._series.get(plugin, {}).get(tag)
        if not series or run != self._name:
            return EMPTY
        steps, times, values = zip(*series, strict=True)
        return points(list(steps), list(times), list(values))

    def list_scalars(self, run: str | None = None) -> Mapping[str, Mapping[str, Listed]]:
        """The scalar series."""
        return self.list("scalars")

    def read_scalar(self, run: str, tag: str) -> Points:
        """A scalar series."""
        return self.read("scalars", run, tag)

    def folder(self, run: str) -> Path | None:
        """The folder."""
        return self._folder
