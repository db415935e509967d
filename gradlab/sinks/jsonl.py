"""JsonlSink: results as lines of JSON, for `jq`, pandas and `gradlab compare`."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.arguments import PATH, TEXT, check_arguments, named_options
from gradlab.events import OutputFile
from gradlab.finding import Finding, finding_record, finite_or_null
from gradlab.frame import Frame, JacobianBlock
from gradlab.sinks.scalars import block_scalars, global_norms


class JsonlSink:
    """Appends one JSON object a line to `path`. Every line has `step` and `time` (seconds since the epoch), and one of

        {"step": 3, "time": 1793.5, "scalars": {"train/loss": 0.25, "lr": null}, "nonfinite": {"lr": "nan"}}
        {"step": 3, "time": 1793.5, "finding": {"code": "GL702", "sites": ["fc1.weight"], "message": "...", ...}}
        {"step": 3, "time": 1793.5, "text": {"tag": "run/card", "markdown": "..."}}

    JSON has no NaN and no infinities: such a value is null, and `nonfinite` (only there where it is needed) says which.
    Of a frame only the global gradient norms are written, of a Jacobian block its summaries; the event file has all.

    Raises:
        MachineError: if the place cannot be written to.
        EventError: if a write fails; the file is closed then.
    """

    owns_file = True
    """Whether it closes a file by itself when nobody has it any more: a monitor's end must come before that."""

    @named_options
    def __init__(self, path: str | os.PathLike[str], *, name: str = "jsonl") -> None:
        check_arguments("JsonlSink()", {"path": PATH, "name": TEXT}, {"path": path, "name": name})
        self.name = name
        self._file = OutputFile(Path(path), append=True)
        if ends_inside_a_line(Path(path)):
            self._file.write(b"\n")
        weakref.finalize(self, self._file.close)

    @property
    def closed(self) -> bool:
        """Whether it was closed, by `close` or by a failed write."""
        return self._file.closed

    def frame(self, frame: Frame) -> None:
        """Write the global gradient norms of one step."""
        self.scalars(global_norms(frame), frame.step, frame.wall_time)

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Write a few named numbers of one step."""
        if not values:
            return
        plain, nonfinite = finite_or_null(values)
        self._write(step, wall_time, {"scalars": plain} | ({"nonfinite": nonfinite} if nonfinite else {}))

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Write a finding, so that others can read it at once."""
        self._write(finding.step, wall_time, {"finding": finding_record(finding)})
        self.flush()

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Write the summaries of a block."""
        self.scalars(block_scalars(block), step, wall_time)

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """Write a text."""
        self._write(step, wall_time, {"text": {"tag": tag, "markdown": markdown}})

    def flush(self) -> None:
        """Make what was taken readable by others."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. May be called twice."""
        self._file.close()

    def _write(self, step: int, wall_time: float, result: Mapping[str, Any]) -> None:
        line = json.dumps({"step": step, "time": wall_time, **result}, ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")


def ends_inside_a_line(path: Path) -> bool:
    """Whether the last line was cut off, as by a process that was killed."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
