"""Reactions: on which findings of a run something is done, and what a run that a rule has stopped says.

Belongs here: causes above `info` alone, once a code, at most three times a run. Does not: what is done (`monitor`), or
what may be chosen (`options`).
"""

from __future__ import annotations

from collections.abc import Callable

from gradlab.diagnose.options import Reaction
from gradlab.finding import Finding

MOST = 3
"""So many findings of a run are acted on."""


class Reactions:
    """Picks those findings of one run on which something is done, and holds them until that is safe.

    Args:
        on_finding: what is done; a function is given the finding.
    """

    def __init__(self, on_finding: Reaction | Callable[[Finding], object] = "log") -> None:
        self.kind = on_finding if isinstance(on_finding, str) else "call"
        self.function = on_finding if callable(on_finding) else None
        self._waiting: list[Finding] = []
        self._seen: set[str] = set()

    def note(self, finding: Finding) -> None:
        """A finding is new, or in a later state: take it where it is one to act on."""
        code = finding.code or finding.name
        is_cause = finding.explained_by is None and finding.severity != "info"
        if self.kind == "log" or not is_cause or code in self._seen or len(self._seen) >= MOST:
            return
        self._seen.add(code)
        self._waiting.append(finding)

    def take(self) -> list[Finding]:
        """The findings to act on now; each is given out once."""
        taken, self._waiting = self._waiting, []
        return taken

    def put_back(self, finding: Finding) -> None:
        """There was nothing to be done about it, so that it does not count."""
        self._seen.discard(finding.code or finding.name)


def stop_sentence(finding: Finding) -> str:
    """Why a run was stopped."""
    return f"stopped by {finding.code or finding.name} at step {finding.last_step}: {finding.message}"
