"""FindingsFile: the findings of a run as lines of JSON, for whoever reads while the training goes on."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gradlab.events import OutputFile
from gradlab.finding import Finding, finding_of_record, finding_record
from gradlab.frame import Frame, JacobianBlock
from gradlab.sinks.jsonl import ends_inside_a_line


class FindingsFile:
    """Appends each finding to `path` as one JSON object a line, as it comes; a later state of it is a further line.

    Beside it, what rules could not tell and why is kept in `abstained.json`.

    Args:
        path: the file.
        of: the model's name, where a process trains several: a part of each finding's key.
    Raises:
        MachineError: if the place cannot be written to.
        EventError: if a write fails; the file is closed then.
    """

    owns_file = True
    """Whether it closes a file by itself when nobody has it any more: a monitor's end must come before that."""

    def __init__(self, path: Path, *, of: str = "") -> None:
        self.name = "findings"
        self._of = of
        self._abstained: dict[str, str] = {}
        self._beside = path.with_name(ABSTAINED)
        self._file = OutputFile(path, append=True)
        if ends_inside_a_line(path):
            self._file.write(b"\n")
        weakref.finalize(self, self._file.close)

    @property
    def closed(self) -> bool:
        """Whether it was closed, by `close` or by a failed write."""
        return self._file.closed

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Write a state of a finding, so that others can read it at once."""
        record = finding_record(named_for(finding, self._of))
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def abstained(self, reasons: Mapping[str, str]) -> None:
        """Keep, by code, why rules could not tell; the file is written anew where other rules abstain than before."""
        if reasons.keys() == self._abstained.keys() or not self._beside.parent.is_dir():
            return  # a folder that is gone is not made anew, and the run itself says so
        self._abstained = dict(reasons)
        draft = self._beside.with_name(f".{self._beside.name}.{os.getpid()}")
        draft.write_text(json.dumps(self._abstained, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, self._beside)

    def frame(self, frame: Frame) -> None:
        """Numbers are in other files."""

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Numbers are in other files."""

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Numbers are in other files."""

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """Texts are in other files."""

    def flush(self) -> None:
        """Make what was taken readable by others."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. May be called twice."""
        self._file.close()


ABSTAINED = "abstained.json"
"""The name of the file beside it."""


def named_for(finding: Finding, model: str) -> Finding:
    """The finding with the model's name in its key, which tells it from the same one of another model."""
    return replace(finding, key=": ".join(filter(None, (model, finding.key)))) if model else finding


def read_findings(path: Path) -> list[Finding] | None:
    """Every state of every finding in the file, oldest first; None where there is no file.

    A line that is not complete, as the last one of a file that is being written, is left out.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        try:
            found.append(finding_of_record(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return found
