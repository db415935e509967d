"""MemorySink: the last results as objects, for notebooks and tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from gradlab.arguments import TEXT, check_arguments, named_options, whole
from gradlab.finding import Finding
from gradlab.frame import Frame, JacobianBlock


class MemorySink:
    """Keeps the last so many results of each kind; closing it keeps them too."""

    @named_options
    def __init__(self, last: int = 1000, *, name: str = "memory") -> None:
        check_arguments("MemorySink()", {"last": whole(0), "name": TEXT}, {"last": last, "name": name})
        self.name = name
        self.frames: deque[Frame] = deque(maxlen=last)
        self.findings: deque[Finding] = deque(maxlen=last)
        self.logged: deque[tuple[int, dict[str, float]]] = deque(maxlen=last)
        """Step and scalars of each call of `scalars`."""
        self.blocks: deque[tuple[int, JacobianBlock]] = deque(maxlen=last)
        """Step and block."""
        self.texts: deque[tuple[int, str, str]] = deque(maxlen=last)
        """Step, tag and Markdown."""

    def frame(self, frame: Frame) -> None:
        """Keep a frame."""
        self.frames.append(frame)

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Keep a few named numbers."""
        self.logged.append((step, dict(values)))

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Keep a finding."""
        self.findings.append(finding)

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Keep a Jacobian block."""
        self.blocks.append((step, block))

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """Keep a text."""
        self.texts.append((step, tag, markdown))

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing to let go of."""
