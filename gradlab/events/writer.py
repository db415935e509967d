"""EventWriter: one event file of one process, into which frames, scalars, pictures, texts and settings go.

Belongs here: which Value a call becomes, when a tag's metadata is written, and the order of steps. Does not: the bytes
of a message (`encode`, `templates`, `hparams`), the file's buffer and its errors (`output_file`).
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.errors import EventError
from gradlab.events import encode, hparams
from gradlab.events.encode import DataClass
from gradlab.events.image import png
from gradlab.events.output_file import OutputFile
from gradlab.events.pyramid import ROWS, Block, Pyramid
from gradlab.events.templates import ScalarTemplate, VectorTemplate
from gradlab.events.tfrecord import record
from gradlab.frame import Schema
from gradlab.tags import HPARAMS_EXPERIMENT_TAG, HPARAMS_SESSION_TAG, SERIES_PLUGIN

"""Whose series the vectors of a frame are."""
VERSION = 1
"""Version of the metadata of vectors."""
_MOST_TEMPLATES = 64
_NO_STEP = -(2**63)
_TemplateKey = tuple[tuple[str, int], ...]
"""Metrics, and the ids of their tuples of site names: hashing 200 names would cost more than writing their values."""


class EventWriter:
    """Writes an event file that TensorBoard reads, into `logdir`.

    Every method takes the step and the time (seconds since the epoch; now, where left out). A tag's steps must not go
    back: TensorBoard would drop what it has from there on. Where they do, EventError is raised, nothing is written and
    the writer stays usable. A value at the same step takes the place of the one before.
    A failed write closes the file (`closed`) and raises EventError; so does every later call.
    What is written appears to others at `flush`, `close`, or with a call after `flush_seconds`. One thread at a time.

    Raises:
        MachineError: if `logdir` cannot be written to.
        EventError: if it cannot be made for another reason, such as a file of that name.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        *,
        rank: int = 0,
        resumed_step: int | None = None,
        flush_seconds: float = 5.0,
        pyramid: bool = True,
    ) -> None:
        """Create the file; it never replaces another.

        Args:
            logdir: the folder of the run, made if it is not there.
            rank: above 0, the file goes to `logdir/rank<rank>`, since TensorBoard's Python loader stalls on two live
                files in one folder.
            resumed_step: the step at which this run goes on; TensorBoard forgets what earlier files have from there.
            flush_seconds: how long what is written may wait in memory.
            pyramid: whether vectors are summed up in blocks too (`pyramid`), for views of long runs.
        """
        folder = Path(logdir) / f"rank{rank}" if rank else Path(logdir)
        self._file = _create(folder, flush_seconds)
        self._vector_templates: dict[_TemplateKey, VectorTemplate] = {}
        self._scalar_templates: dict[tuple[str, ...], ScalarTemplate] = {}
        self._block_heads: dict[str, bytes] = {}
        self._last_steps: dict[str, int] = {}
        self._newest_step = _NO_STEP
        self._pyramid = Pyramid() if pyramid else None
        self._file.write(record(encode.first_event(time.time())))
        if resumed_step is not None:
            # TensorBoard takes the first restart event that it meets in a run for its beginning, so there are two.
            self._file.write(2 * record(encode.restart_event(resumed_step, time.time())))
        self._file.flush()
        weakref.finalize(self, self._file.close)

    @property
    def path(self) -> Path:
        """The event file."""
        return self._file.path

    @property
    def closed(self) -> bool:
        """Whether it was closed, by `close` or by a failed write."""
        return self._file.closed

    def last_step(self, tag: str) -> int | None:
        """The step last written for `tag` in this file, or None."""
        return self._last_steps.get(tag)

    def vectors(self, series: Iterable[tuple[Schema, np.ndarray]], step: int, wall_time: float | None = None) -> None:
        """Write one step's vectors as one record; names go to the file with a tag's first vector only.

        Args:
            series: schemas, each with its [sites] float32. Fast where their tuples of sites are the same on each step.
            step: the step.
            wall_time: seconds since the epoch.
        """
        pairs = tuple(series)
        if not pairs:
            return
        schemas = [schema for schema, _ in pairs]
        key = tuple([(schema.metric, id(schema.sites)) for schema in schemas])
        template = self._vector_templates.get(key) or self._make_template(key, schemas)
        self._check_order(template.tags, step)
        contents, wall_time = template.contents([values for _, values in pairs]), _or_now(wall_time)
        self._write(template.encode(contents, step, wall_time), template.tags, step)
        if self._pyramid is not None and (due := self._pyramid.add(template, contents)):
            self._write_blocks(self._pyramid.full(due), step, wall_time)

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float | None = None) -> None:
        """Write native scalars, as float32, for the tabs that TensorBoard itself has."""
        if not values:
            return
        tags = tuple(values)
        template = self._scalar_templates.get(tags)
        if template is None:
            _make_room(self._scalar_templates)
            template = self._scalar_templates[tags] = ScalarTemplate(tags)
        self._check_order(tags, step)
        self._write(template.encode(list(values.values()), step, _or_now(wall_time)), tags, step)

    def image(self, tag: str, pixels: np.ndarray, step: int, wall_time: float | None = None) -> None:
        """Write a picture for the Images tab: [height, width, 3] uint8."""
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            seen = f"{list(pixels.shape)} {pixels.dtype}"
            raise EventError(f"{tag}: a picture is an array [height, width, 3] of uint8, got {seen}.")
        height, width, _ = pixels.shape
        strings = [str(width).encode(), str(height).encode(), png(pixels)]
        head = self._metadata(tag, "images", data_class=DataClass.BLOB_SEQUENCE)
        self._write_value(tag, encode.string_value(tag, strings, [3], head), step, wall_time)

    def text(self, tag: str, markdown: str, step: int, wall_time: float | None = None) -> None:
        """Write Markdown for the Text tab."""
        head = self._metadata(tag, "text")
        self._write_value(tag, encode.string_value(tag, [markdown.encode()], [], head), step, wall_time)

    def histogram(
        self, tag: str, edges: np.ndarray, counts: np.ndarray, step: int, wall_time: float | None = None
    ) -> None:
        """Write a histogram for the Histograms tab: `counts` [bins] between `edges` [bins + 1]."""
        if np.ndim(counts) != 1 or np.shape(edges) != (len(counts) + 1,):
            seen = f"edges {list(np.shape(edges))} and counts {list(np.shape(counts))}"
            raise EventError(f"{tag}: a histogram is counts [bins] between edges [bins + 1], got {seen}.")
        bins = np.stack([edges[:-1], edges[1:], counts], axis=1).astype(np.float64)
        head = self._metadata(tag, "histograms")
        self._write_value(tag, encode.tensor_value(tag, bins, head), step, wall_time)

    def tensor(
        self,
        tag: str,
        array: np.ndarray,
        step: int,
        wall_time: float | None = None,
        *,
        plugin_name: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an array of numbers for the plugin `plugin_name`, with JSON `metadata` at the tag's first."""
        head = self._metadata(tag, plugin_name, metadata)
        self._write_value(tag, encode.tensor_value(tag, array, head), step, wall_time)

    def strings(
        self,
        tag: str,
        strings: Sequence[str],
        step: int,
        wall_time: float | None = None,
        *,
        plugin_name: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a vector of strings for the plugin `plugin_name`, with JSON `metadata` at the tag's first."""
        head = self._metadata(tag, plugin_name, metadata)
        encoded = [one.encode() for one in strings]
        self._write_value(tag, encode.string_value(tag, encoded, [len(encoded)], head), step, wall_time)

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str] = (), wall_time: float | None = None) -> None:
        """Write the settings of this run for the HPARAMS tab. Once a file, as TensorBoard keeps the first only.

        Args:
            config: the settings, nested as they may be; the tab shows dotted names.
            metrics: scalar tags to show beside them. Where left out, the tab shows every scalar of every run.
            wall_time: when the run began, seconds since the epoch.
        """
        if self.last_step(HPARAMS_SESSION_TAG) is not None:
            raise EventError(f"{self.path} has settings already, and TensorBoard keeps the first. Use text() for more.")
        flat, began = hparams.flatten(config), _or_now(wall_time)
        if metrics:
            self._write_value(HPARAMS_EXPERIMENT_TAG, hparams.experiment_value(flat, metrics, began), 0, began)
        self._write_value(HPARAMS_SESSION_TAG, hparams.session_value(flat, began), 0, began)

    def event(self, payload: bytes, tags: Sequence[str] = ()) -> None:
        """Write an Event message that somebody else has encoded, whatever its step.

        Args:
            payload: the message.
            tags: those whose metadata it holds and that are not to be written by others, as that of the settings.
        """
        self._file.write(record(payload))
        for tag in tags:
            self._last_steps.setdefault(tag, 0)

    def flush(self) -> None:
        """Make what was written readable by others."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. May be called twice."""
        if self._pyramid is not None and not self.closed and self._newest_step > _NO_STEP:
            self._write_blocks(self._pyramid.rest(), self._newest_step, time.time())
        self._file.close()

    def _make_template(self, key: _TemplateKey, schemas: Sequence[Schema]) -> VectorTemplate:
        """The template of `schemas`: kept for the next step, unless it holds metadata, which is written only once."""
        heads = {schema.tag: self._metadata(schema.tag, SERIES_PLUGIN, _described(schema)) for schema in schemas}
        template = VectorTemplate(schemas, heads)
        if not any(heads.values()):
            _make_room(self._vector_templates)
            self._vector_templates[key] = template
        return template

    def _write_blocks(self, blocks: Iterable[Block], step: int, wall_time: float) -> None:
        """Write blocks of the pyramid as one record: tensors [4, sites], tags `<tag>/x<steps>`, their last step."""
        tags, values = [], []
        for block in blocks:
            tag = f"{block.tag}/x{block.steps}"
            tags.append(tag)
            values += [self._block_head(tag, block), block.values.tobytes()]
        if tags:
            self._write(encode.event(step, wall_time, b"".join(values)), tags, step)

    def _block_head(self, tag: str, block: Block) -> bytes:
        head = self._block_heads.get(tag)
        if head is None:
            about = {"version": VERSION, "of": block.tag, "steps": block.steps, "rows": ROWS}
            described = self._metadata(tag, SERIES_PLUGIN, about)
            head = encode.tensor_value_head(tag, "float32", block.values.shape, described)
            if not described:
                self._block_heads[tag] = head
        return head

    def _metadata(
        self,
        tag: str,
        plugin_name: str,
        content: Mapping[str, Any] | None = None,
        data_class: DataClass = DataClass.TENSOR,
    ) -> bytes:
        """The metadata field for the next Value of `tag`: empty where this file has one already."""
        if tag in self._last_steps:
            return b""
        described = b"" if content is None else json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return encode.metadata(plugin_name, described, data_class)

    def _write_value(self, tag: str, value: bytes, step: int, wall_time: float | None) -> None:
        self._check_order((tag,), step)
        self._write(encode.event(step, _or_now(wall_time), value), (tag,), step)

    def _check_order(self, tags: Sequence[str], step: int) -> None:
        if step >= self._newest_step:
            return
        for tag in tags:
            last = self._last_steps.get(tag, step)
            if step < last:
                raise EventError(
                    f"{tag}: step {step} comes after step {last}; TensorBoard would drop what it has from {step} on. "
                    "Log steps in order, or under another tag."
                )

    def _write(self, payload: bytes, tags: Sequence[str], step: int) -> None:
        self._file.write(record(payload))
        self._last_steps.update(dict.fromkeys(tags, step))
        if step > self._newest_step:
            self._newest_step = step


def _described(schema: Schema) -> dict[str, Any]:
    """What the file says of a vector, once."""
    about = {"version": VERSION, "metric": schema.metric, "unit": schema.unit, "sites": schema.sites}
    return about | ({"edges": schema.edges} if schema.edges else {})


def _create(folder: Path, flush_seconds: float) -> OutputFile:
    """A new file `events.out.tfevents.<time>.<host>.<process>.<n>.gradlab`, of the first `n` that is free."""
    stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for n in itertools.count():
        try:
            return OutputFile(folder / f"{stem}.{n}.gradlab", flush_seconds=flush_seconds)
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def _make_room(templates: dict[Any, Any]) -> None:
    """Forget old templates where there are many: callers that never repeat themselves must not fill the memory."""
    if len(templates) >= _MOST_TEMPLATES:
        templates.clear()


def _or_now(wall_time: float | None) -> float:
    return time.time() if wall_time is None else wall_time
