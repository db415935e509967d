"""The files of the page: its own, and plotly.js out of the plotly wheel."""

from __future__ import annotations

import functools
from importlib.resources import files

PLOTLY = "plotly.min.js"


@functools.cache
def static_files() -> dict[str, bytes]:
    """The page's own files, by name."""
    folder = files("gradlab.board").joinpath("static")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@functools.cache
def plotly_script() -> bytes:
    """plotly.js, as the plotly wheel ships it. Found without importing plotly."""
    return files("plotly").joinpath("package_data", PLOTLY).read_bytes()
