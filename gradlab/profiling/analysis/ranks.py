"""The summaries of all ranks put together: whether one rank keeps the others waiting.

Ranks that train together end each step together, so the time of their steps is the same. Who waits is seen in the
collectives: the rank that comes last has the shortest ones.

Belongs here: what follows from several summaries. Does not: waiting for the ranks to write theirs
(`gradlab.profiling.writer`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from gradlab.profiling.analysis.attributed_times import TRACED_PHASES
from gradlab.profiling.analysis.verdict import verdict

STRAGGLE_SHARE = 0.15
_PHASE_KEYS = tuple(f"{phase}_ms" for phase in TRACED_PHASES)


def with_ranks(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rank zero's summary with a row for each rank, and the verdict that one of them straggles, where one does."""
    ordered = sorted(summaries, key=lambda summary: summary["rank"])
    joined = dict(ordered[0])
    joined["ranks"] = [_row(summary) for summary in ordered]
    evidence = _straggler_evidence(joined["ranks"])
    if evidence is not None:
        joined["verdict"] = verdict("straggler", evidence).record(joined["verdict"]["shares"])
    return joined


def _row(summary: dict[str, Any]) -> dict[str, float]:
    mean = summary["mean"]
    phases = {key: mean[key] for key in _PHASE_KEYS}
    return {"rank": summary["rank"], "ms": mean["ms"], **phases, "collectives_ms": summary["collectives_ms"]}


def _straggler_evidence(rows: Sequence[dict[str, float]]) -> str | None:
    """The evidence against the rank that the others wait for; None where they wait for each other alike."""
    if len(rows) < 2:
        return None
    slow = min(rows, key=lambda row: row["collectives_ms"])
    others = [row for row in rows if row is not slow]
    waited = statistics.median(row["collectives_ms"] for row in others) - slow["collectives_ms"]
    step = statistics.median(row["ms"] for row in rows)
    if waited < STRAGGLE_SHARE * step:
        return None
    excess = {key: slow[key] - statistics.median(row[key] for row in others) for key in _PHASE_KEYS}
    longest = max(excess, key=excess.__getitem__)
    phase = longest.removesuffix("_ms").replace("data", "data wait")
    rank = round(slow["rank"])
    # Where the others wait is part of their phases too, so only a phase that explains most of it is named.
    explains = excess[longest] > waited / 2
    where = f"; its {phase} takes {excess[longest]:.3g} ms longer" if explains else ""
    return f"the others wait {waited:.3g} ms of each step ({waited / step:.0%}) for rank {rank}{where}"
