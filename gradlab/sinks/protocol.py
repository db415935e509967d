"""The Sink protocol: what every place where results go can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gradlab.finding import Finding
from gradlab.frame import Frame, JacobianBlock


class Sink(Protocol):
    """A place where results go. Every method is called on the training thread, so it must return in microseconds."""

    name: str
    """How warnings call this sink."""

    def frame(self, frame: Frame) -> None:
        """Take the values of one logged step."""

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Take a few named numbers of one step."""

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Take a diagnosis."""

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Take a Jacobian slice."""

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """Take a text for people, in Markdown."""

    def flush(self) -> None:
        """Make what was taken readable by others."""

    def close(self) -> None:
        """Flush and let go. Called once."""
