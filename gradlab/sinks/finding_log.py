"""FindingLog: a line for each finding, for whatever takes lines: a logger, a tracker of experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gradlab.finding import SEVERITIES, Finding
from gradlab.findings import identity
from gradlab.frame import Frame, JacobianBlock


def finding_line(finding: Finding) -> str:
    """`warning GL201 since step 0: the outputs go through a softmax ... Give the loss ...`."""
    head = " ".join(filter(None, (finding.severity, finding.code)))
    return " ".join(filter(None, (f"{head} since step {finding.first_step}: {finding.message}", finding.remedy)))


def first_and_worse(write: Callable[[Finding], object]) -> Callable[[Finding], None]:
    """A function that passes on a finding when it comes first, and when it has become more severe."""
    told: dict[tuple[object, ...], int] = {}

    def pass_on(finding: Finding) -> None:
        severity = SEVERITIES.index(finding.severity) if finding.severity in SEVERITIES else 0
        if severity > told.get(identity(finding), -1):
            told[identity(finding)] = severity
            write(finding)

    return pass_on


class FindingLog:
    """Calls `write(line, finding)` for each finding, and again where one has become more severe; takes nothing else."""

    def __init__(self, write: Callable[[str, Finding], object], *, name: str = "log") -> None:
        self.name = name
        self._pass_on = first_and_worse(lambda finding: write(finding_line(finding), finding))

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Write its line."""
        self._pass_on(finding)

    def frame(self, frame: Frame) -> None:
        """A log of findings has no place for it."""

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """A log of findings has no place for it."""

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """A log of findings has no place for it."""

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """A log of findings has no place for it."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The log is not ours to close."""
