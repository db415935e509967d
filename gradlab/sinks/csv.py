"""CsvSink: results as one table, for spreadsheets, pandas and R."""

from __future__ import annotations

import csv
import io
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gradlab.arguments import PATH, TEXT, check_arguments, named_options
from gradlab.events import OutputFile
from gradlab.finding import Finding
from gradlab.frame import Frame, JacobianBlock
from gradlab.sinks.scalars import block_scalars, site_scalars

_OPEN_ROWS = 64
"""So many of the newest steps wait for further numbers of theirs: frames come a little later than scalars."""

_LONGEST_LINE = 1 << 24


class CsvSink:
    """Writes a table with one row a logged step to `path`.

        step,wall_time,weight_grad.norm/fc1.weight,output.norm/fc1,perf/step_ms
        0,1793.5,0.25,nan,
        1,1794.5,0.125,3.5,12.25

    The columns are `step`, `wall_time` (seconds since the epoch), then `metric/site` for each number of a frame, the
    names of scalars, and `jacobian/<name>/<summary>`, in the order of their first coming. A field is empty where a step
    has no such number; `nan`, `inf` and `-inf` are numbers. Histograms, findings and texts are left out.

    **A column that comes later**, as of a site that is first seen in mid-run, is added on the right: the file is
    written anew with the wider header beside the old one, and then takes its place. Nothing is lost, and the rows
    before have an empty field there. That costs one pass over the file each time new columns come.

    A row is written when 64 later steps have come, on `flush` and on `close`. A number that comes for a step that has
    been written by then has a further row of that step. A number costs about a microsecond. A file that is there
    already is gone on with; a last line that was cut off is dropped.

    Raises:
        MachineError: if the place cannot be written to.
        EventError: if a write fails; the file is closed then.
    """

    owns_file = True
    """Whether it closes a file by itself when nobody has it any more: a monitor's end must come before that."""

    @named_options
    def __init__(self, path: str | os.PathLike[str], *, name: str = "csv") -> None:
        check_arguments("CsvSink()", {"path": PATH, "name": TEXT}, {"path": path, "name": name})
        self.name = name
        self._table = _Table(Path(path))
        weakref.finalize(self, self._table.close)

    def frame(self, frame: Frame) -> None:
        """Take the numbers of one step."""
        values = site_scalars(frame)
        numbers = np.fromiter(values.values(), np.float32, len(values)).tolist()
        self._table.take(frame.step, frame.wall_time, dict(zip(values, map("%.9g".__mod__, numbers), strict=True)))

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Take a few named numbers of one step."""
        self._table.take(step, wall_time, {key: repr(float(value)) for key, value in values.items()})

    def finding(self, finding: Finding, wall_time: float) -> None:
        """A table of numbers has no place for it."""

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Take the summaries of a block."""
        self.scalars(block_scalars(block), step, wall_time)

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """A table of numbers has no place for it."""

    def flush(self) -> None:
        """Write all rows, and make them readable by others."""
        self._table.flush()

    def close(self) -> None:
        """Flush and close. May be called twice."""
        self._table.close()


class _Table:
    """The file, its columns, and the rows that are not written yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._rows: dict[int, dict[str, str]] = {}
        self._file = OutputFile(path, append=True)
        self._columns = dict.fromkeys(_header(path))
        if not self._columns:
            self._columns = dict.fromkeys(("step", "wall_time"))
            self._file.write(_line(self._columns))

    def take(self, step: int, wall_time: float, values: Mapping[str, str]) -> None:
        """Add numbers to the row of a step."""
        if values:
            row = self._rows.setdefault(step, {"step": str(step), "wall_time": repr(float(wall_time))})
            row.update(values)
        if len(self._rows) > _OPEN_ROWS:
            self._write([min(self._rows)])

    def flush(self) -> None:
        """Write all rows."""
        self._write(sorted(self._rows))
        self._file.flush()

    def close(self) -> None:
        """Flush and close; in a forked child, close without writing."""
        if not self._file.closed and os.getpid() == self._pid:
            self.flush()
        self._file.close()

    def _write(self, steps: Iterable[int]) -> None:
        rows = [self._rows.pop(step) for step in steps]
        new = dict.fromkeys(key for row in rows for key in row if key not in self._columns)
        if new:
            self._widen(new)
        for row in rows:  # numbers need no quotes
            self._file.write(",".join([row.get(column, "") for column in self._columns]).encode() + b"\n")

    def _widen(self, new: Mapping[str, None]) -> None:
        """Write the file anew with further columns on the right."""
        self._file.close()
        self._columns |= new
        beside = self._path.with_name(self._path.name + ".wider")
        beside.unlink(missing_ok=True)
        wider = OutputFile(beside)
        with self._path.open("rb") as old:
            next(old)
            wider.write(_line(self._columns))
            for line in old:
                wider.write(line.rstrip(b"\n") + b"," * len(new) + b"\n")
        wider.close()
        os.replace(beside, self._path)
        self._file = OutputFile(self._path, append=True)


def _header(path: Path) -> list[str]:
    """The columns of a file that is there; a last line that was cut off, as of a killed process, is dropped."""
    if not path.is_file():
        return []
    with path.open("r+b") as file:
        header = file.readline()
        file.seek(max(0, path.stat().st_size - _LONGEST_LINE))
        begin, tail = file.tell(), file.read()
        file.truncate(begin + tail.rfind(b"\n") + 1)
    return next(csv.reader([header.decode()])) if header.endswith(b"\n") else []


def _line(fields: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()
