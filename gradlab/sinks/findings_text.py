"""The findings of a run as Markdown, for TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Sequence

from gradlab.events.markdown import cell, code_cell
from gradlab.finding import Finding
from gradlab.findings import causes, latest


def findings_text(states: Sequence[Finding]) -> str:
    """The newest state of each finding, causes in the order in which to look at them, symptoms below their cause."""
    parts = []
    for number, cause in enumerate(causes(latest(states)), 1):
        parts.append(f"{number}. {_sentence(cause.finding)}")
        parts += [f"    - *explains* {_sentence(one)}" for one in cause.symptoms]
    return "\n".join(parts) + "\n" if parts else "No findings.\n"


def _sentence(one: Finding) -> str:
    name = " ".join(filter(None, (one.code, one.name)))
    where = f" at {', '.join(map(code_cell, one.sites[:3]))}" if one.sites else ""
    numbers = ", ".join(f"{cell(key)} {value:.4g}" for key, value in one.evidence.items())
    return " ".join(
        filter(
            None,
            (
                f"**{cell(name)}** ({cell(one.severity)}) since step {one.first_step}{where}: {cell(one.message)}",
                f"*{cell(one.remedy)}*" if one.remedy else "",
                f"({numbers})" if numbers else "",
            ),
        )
    )
