"""How one attempt of a run ended: its exit code and the sentence for it, and how `exit.json` keeps them.

What leads to an outcome, training and what comes before and after it, is in `run`.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import Any

from gradlab.diagnose.reactions import stop_sentence
from gradlab.errors import GradlabError, TrainingStopped
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.machine import machine_fault
from gradlab.launch.signals import StopRequest
from gradlab.launch.summary import Summary
from gradlab.runs.folder import RunFolder

DONE, FAILED, RESUMABLE, STOPPED, INTERRUPTED = 0, 1, 75, TrainingStopped.exit_code, 130
"""Exit codes. Gradlab's own errors have theirs in `GradlabError.exit_code`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt of a run ended."""

    code: int
    """The exit code: 0 done, 1 failed, 3 this machine cannot, 75 resumable, 79 stopped by a rule, 130 interrupted."""
    reason: str
    """One sentence."""
    folder: RunFolder
    summary: Summary | None = None
    """What the run has to say; None where it failed before there was anything."""
    error: BaseException | None = None
    """What the user's code raised."""
    explained: bool = False
    """Whether `reason` says more than `error` itself."""
    follows: bool = False
    """Whether this process is a further rank, whose end rank zero reports."""


def stopped_outcome(folder: RunFolder, request: StopRequest, when: str) -> Outcome:
    """The outcome of a run that was asked to stop: resumable, whether it has a checkpoint by now or not.

    One that a finding has stopped would be stopped again.
    """
    if request.finding is not None:
        return Outcome(code=STOPPED, reason=stop_sentence(request.finding), folder=folder)
    name = request.received.name if request.received else "a signal"
    code = INTERRUPTED if request.received is signal.SIGINT else RESUMABLE
    return Outcome(code=code, reason=f"stopped by {name} {when}", folder=folder)


def failed_outcome(error: BaseException, folder: RunFolder) -> Outcome:
    """The outcome for an error: gradlab's own say it in their text, the others with a traceback."""
    known = error if isinstance(error, GradlabError) else machine_fault(error)
    if known is not None:
        return Outcome(code=known.exit_code, reason=str(known), folder=folder)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Outcome(code=FAILED, reason=text, folder=folder, error=error)


def with_folder_problem(outcome: Outcome, watch: FolderWatch) -> Outcome:
    """The outcome of a run whose folder lacks something: failed, unless it has failed anyway."""
    if not watch.problem or outcome.code not in (DONE, RESUMABLE, STOPPED) or outcome.reason.endswith(watch.problem):
        return outcome
    trained = "trained to the end" if outcome.code == DONE else outcome.reason
    return replace(outcome, code=FAILED, reason=f"{trained}, but {watch.problem}")


def write_exit(outcome: Outcome, request: StopRequest) -> None:
    """Write `exit.json`."""
    facts: dict[str, Any] = {"signal": request.received.name if request.received else None}
    if outcome.summary is not None:
        kept = ("seconds", "epochs", "steps", "metrics")
        facts |= {name: getattr(outcome.summary, name) for name in kept}
        facts["findings"] = len(outcome.summary.findings)
    outcome.folder.write_exit(code=outcome.code, reason=outcome.reason, **facts)
