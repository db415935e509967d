"""The diagnosis of one training: hands each frame to the rules, and says each of their findings once.

Belongs here: what has been said already, and what a rule has to remember from frame to frame. Does not: how a rule
recognises its case (`rules`).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlab.diagnose.context import LossGraph
from gradlab.diagnose.rules import numbers, ranks
from gradlab.diagnose.rules.loss import double_activation
from gradlab.diagnose.rules.signal import ZeroGradients
from gradlab.frame import Finding, Frame


class Diagnosis:
    """Turns frames into findings, each said once until its cause has gone and come back."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._odd: set[int] = set()
        """The ranks that stood out in the last frame that tells."""
        self._zero_gradients = ZeroGradients()

    def look(self, frame: Frame) -> list[Finding]:
        """The new findings of a frame."""
        return [*self._nonfinite(frame), *self._zero_gradients.look(frame), *self._odd_ranks(frame)]

    def look_at_loss(self, step: int, graph: LossGraph) -> list[Finding]:
        """The new findings about the graph of a loss."""
        finding = double_activation(step, graph)
        if finding is None or finding.kind in self._said:
            return []
        self._said.add(finding.kind)
        return [finding]

    def _nonfinite(self, frame: Frame) -> Iterator[Finding]:
        finding = numbers.first(frame)
        if finding is None:
            self._said.discard("nonfinite")
        elif "nonfinite" not in self._said:
            self._said.add("nonfinite")
            yield finding

    def _odd_ranks(self, frame: Frame) -> Iterator[Finding]:
        if not any(metric.endswith("@ranks") for metric in frame):
            return
        found = ranks.standing_out(frame)
        yield from (finding for rank, finding in found.items() if rank not in self._odd)
        self._odd = set(found)
