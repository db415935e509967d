"""Names of diagnosis rules in a file, and what may be done about findings: limits whose complaints have near misses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RuleName:
    """A code, a beginning of codes, or a name of rules; with `sites`, a glob over sites may follow after an `@`."""

    sites: bool = False

    def allows(self, value: Any) -> bool:
        """Whether there is such a rule, or may be one by the time that rules are asked."""
        return not self.objection(value)

    def objection(self, value: str) -> str:
        """What is wrong with it, with the near names; "" where nothing is."""
        from gradlab.diagnose.catalogue import objection
        from gradlab.diagnose.options import rule_part

        return objection(rule_part(value) if self.sites else value)

    def phrase(self, kind: str) -> str:
        """What is allowed."""
        return "the code or name of a rule"

    def schema(self) -> dict[str, Any]:
        """Nothing beyond the type: packages bring rules of their own."""
        return {}


@dataclass(frozen=True)
class NotOffered:
    """All words but some that make no sense here, each with the sentence that says why."""

    refused: tuple[tuple[str, str], ...]

    def allows(self, value: Any) -> bool:
        """Whether it is none of them."""
        return value not in dict(self.refused)

    def objection(self, value: str) -> str:
        """Why it is not offered."""
        return dict(self.refused)[value]

    def phrase(self, kind: str) -> str:
        """What is allowed."""
        return kind

    def schema(self) -> dict[str, Any]:
        """The words that are not offered."""
        return {"not": {"enum": [word for word, _ in self.refused]}}
