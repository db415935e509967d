"""TensorBoardSink: results into an event file, as vectors for the Gradients tab and a few series for the other tabs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from gradlab.arguments import TEXT, check_arguments, instance, named_options
from gradlab.events import EventWriter, diverging
from gradlab.finding import Finding, finding_record
from gradlab.frame import Frame, JacobianBlock
from gradlab.sinks.findings_text import findings_text
from gradlab.sinks.scalars import Scalars, block_scalars, check_scalars, frame_scalars
from gradlab.tags import (
    FINDINGS_PLUGIN,
    FINDINGS_TAG,
    FINDINGS_TEXT_TAG,
    JACOBIAN_PLUGIN,
    JACOBIAN_PREFIX,
    SPECTRUM_SUFFIX,
)

_WRITER = instance(EventWriter, "a gradlab.events.EventWriter", "Of a folder: TensorBoardSink(EventWriter(folder)).")


class TensorBoardSink:
    """Writes results into `writer`'s event file, and closes it when it is closed.

    | what | where |
    |---|---|
    | each metric of a frame | tensor [sites], plugin `gradlab`, tag `gradlab/<metric>/<schema hash>` |
    | global gradient norm, percentiles over sites | scalars `gradlab/global/<metric>`, `gradlab/<metric>/p50` |
    | each value of each site, with `scalars="all"` | scalars `<metric>/<site>` |
    | findings | strings [n] of JSON, plugin `gradlab_findings`, tag `gradlab/findings/records` |
    | the same in words, when it is flushed or closed | text `gradlab/findings` |
    | a Jacobian block | tensor, plugin `gradlab_jacobian`, tag `gradlab/jacobian/<name>` |
    | its singular values, where it has them | tensor, same plugin, tag `gradlab/jacobian/<name>/singular_values` |
    | its picture and its summaries | image `jacobian/<name>`, scalars `jacobian/<name>/<summary>` |
    """

    owns_file = True
    """Whether it closes a file by itself when nobody has it any more: a monitor's end must come before that."""

    @named_options
    def __init__(self, writer: EventWriter, *, scalars: Scalars = "few", name: str = "tensorboard") -> None:
        check_scalars(scalars)
        check_arguments("TensorBoardSink()", {"writer": _WRITER, "name": TEXT}, {"writer": writer, "name": name})
        self.name = name
        self.writer = writer
        self._scalars = scalars
        self._findings: list[str] = []
        self._findings_step = 0
        self._findings_due: float | None = None
        self._states: list[Finding] = []
        self._last_step = 0
        self._has_news = False
        self._axes: dict[str, bytes] = {}

    def frame(self, frame: Frame) -> None:
        """Write the vectors and the scalars of one step, and the findings before it."""
        vectors = ((series.schema, series.array) for series in frame.series.values())
        self.writer.vectors(vectors, frame.step, frame.wall_time)
        self.writer.scalars(frame_scalars(frame, self._scalars), frame.step, frame.wall_time)
        self._last_step = max(self._last_step, frame.step)
        if self._findings_due is not None:
            self._write_findings()
            self.writer.flush()

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Write native scalars."""
        self.writer.scalars(values, step, wall_time)

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Take a finding; it is written with the next frame or flush, in one record with those of the same step.

        TensorBoard keeps the last record of a step only, and drops records when a tag's steps go back. So a finding
        that comes late is filed under the newest step that had any; its own step is in its JSON.
        """
        if not self._findings or finding.step > self._findings_step:
            self._write_findings()
            self._findings, self._findings_step = [], finding.step
        self._findings.append(json.dumps(finding_record(finding), ensure_ascii=False))
        self._findings_due = wall_time
        self._states.append(finding)
        self._has_news = True

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Write a block: its numbers with the names of its axes, its picture (of its samples' mean), its summaries."""
        tag = self._jacobian_tag(block)
        native_tag = tag.removeprefix("gradlab/")
        whose = {"version": 1, "of": block.of, "wrt": block.wrt, "label": block.label}
        if block.values.size:
            described = whose | {
                "kind": block.kind,
                "row_names": block.row_names,
                "col_names": block.col_names,
                "engine": block.engine,
                "notes": block.notes,
            }
            self.writer.tensor(tag, block.values, step, wall_time, plugin_name=JACOBIAN_PLUGIN, metadata=described)
            matrix = block.values.mean(0, np.float64) if block.values.ndim == 3 else block.values
            self.writer.image(native_tag, diverging(matrix), step, wall_time)
        if len(block.singular_values):
            described = whose | {"kind": "singular_values", "complete": block.complete}
            self.writer.tensor(
                f"{tag}{SPECTRUM_SUFFIX}",
                block.singular_values,
                step,
                wall_time,
                plugin_name=JACOBIAN_PLUGIN,
                metadata=described,
            )
        self.writer.scalars(block_scalars(block, native_tag), step, wall_time)

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """Write a text for the Text tab."""
        self.writer.text(tag, markdown, step, wall_time)

    def flush(self) -> None:
        """Make what was taken readable by TensorBoard."""
        self._write_findings()
        self._write_text()
        self.writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if not self.writer.closed:
            self._write_findings()
            self._write_text()
        self.writer.close()

    def _write_findings(self) -> None:
        if self._findings_due is None:
            return
        wall_time, self._findings_due = self._findings_due, None
        self.writer.strings(
            FINDINGS_TAG,
            self._findings,
            self._findings_step,
            wall_time,
            plugin_name=FINDINGS_PLUGIN,
            metadata={"version": 1},
        )

    def _write_text(self) -> None:
        """What was found, in words, where anything is new: of an event file's texts of one step the last one counts."""
        if self._has_news:
            self._has_news = False
            step = max(self._last_step, *(one.last_step or 0 for one in self._states), 0)
            self.writer.text(FINDINGS_TEXT_TAG, findings_text(self._states), step)

    def _jacobian_tag(self, block: JacobianBlock) -> str:
        """The block's tag; one with other axes than the first of that name gets a tag of its own."""
        tag = f"{JACOBIAN_PREFIX}{block.name}"
        axes = hashlib.sha256(repr((block.row_names, block.col_names)).encode()).digest()
        return tag if self._axes.setdefault(tag, axes) == axes else f"{tag}@{axes.hex()[:8]}"
