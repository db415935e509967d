"""Delivery: frames, findings, blocks and scalars on their way from the training step to sinks and to whoever asks.

Belongs here: what is kept on the host, when and in which order it is handed out, what becomes of a sink that fails.
Does not: when a step begins and ends (`steps`), or what a frame is made from (`taps`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradlab.diagnose.context import Context
from gradlab.diagnose.engine import Diagnosis
from gradlab.diagnose.options import Diagnose
from gradlab.diagnose.reactions import Reactions
from gradlab.errors import RanksError, UnknownNameError, did_you_mean, warn
from gradlab.finding import Finding
from gradlab.findings import identity
from gradlab.frame import Frame, JacobianBlock, Metrics, Series
from gradlab.sinks import FindingsFile, Sink
from gradlab.taps.plan import Plan
from gradlab.taps.series import Copy, with_derived

_MOST_WAITING, _LATE_SECONDS = 16, 0.1
"""So many frames wait at most before they are handed out, and so long."""
_FRAMES_FOR_RULES = 200
"""So many of the last frames rules see."""
_YOUNG_FRAMES = 8
"""So many first frames are handed out at once: they show how the next steps may be watched."""


class Pending(NamedTuple):
    """A frame on its way to the host."""

    step: int
    wall_time: float
    plan: Plan
    copy: Copy
    scaled: frozenset[str]
    """The quantities that carry the loss scale."""


class Delivery:
    """Hands out what a monitor sees.

    Args:
        sinks: where results go.
        strict: raise where a sink fails, instead of one warning and going on without it.
        history: how many frames are kept.
        diagnose: which rules are asked; None: none.
    """

    def __init__(self, sinks: Sequence[Sink], *, strict: bool, history: int, diagnose: Diagnose | None = None) -> None:
        self.sinks = list(sinks)
        self.is_prompt = any(getattr(sink, "prompt", False) for sink in sinks)
        """Whether one of the given sinks wants each frame at once, without a wait for several."""
        self.on_finding: Callable[[Finding], None] | None = None
        """Called with each new finding, once."""
        self._known: set[tuple[object, ...]] = set()
        """The findings that have been handed out, in whatever state."""
        self.reactions = Reactions(diagnose.on_finding if diagnose is not None else "log")
        """The findings on which something is done."""
        self.on_loss: Callable[[BaseException], None] | None = None
        """Called where frames cannot arrive any more, since another rank is gone."""
        self._strict = strict
        self._diagnosis = Diagnosis(diagnose or Diagnose(), None if strict else self._rule_failed)
        self._frames: deque[Frame] = deque(maxlen=history)
        self._pending: deque[Pending] = deque()
        self._sent = 0
        self._has_lost = False
        self.diagnoses = diagnose is not None
        """Whether rules are asked."""
        self._recent: deque[Frame] = deque(maxlen=_FRAMES_FOR_RULES)
        self._derives = True
        self._delivered = time.monotonic()

    def send(self, pending: Pending) -> None:
        """Take a frame whose copy to the host has begun."""
        self._pending.append(pending)
        self._sent += 1

    def deliver(self, *, wait: bool = False, hurry: bool = True) -> None:
        """Hand out the frames that have arrived.

        Without hurry, where steps are short, several at once and no more than a tenth of a second late: code that has
        just run runs about twice as fast as code that the training step has driven out of the processor's
        caches.
        """
        if not self._pending:
            return
        now, is_young = time.monotonic(), self._sent <= _YOUNG_FRAMES
        is_early = len(self._pending) < _MOST_WAITING and now - self._delivered < _LATE_SECONDS
        if is_early and not (wait or hurry or is_young):
            return
        self._delivered = now
        while self._pending and (wait or self._pending[0].copy.done()):
            pending = self._pending.popleft()
            try:
                series = self._with_derived(pending.plan.series(pending.copy, pending.scaled), pending.step)
            except RanksError as error:
                self._pending.clear()
                if self.on_loss is None:
                    raise
                self.on_loss(error)
                return
            except Exception as error:  # one frame is lost, and no more
                if self._strict:
                    raise
                if not self._has_lost:
                    self._has_lost = True
                    warn(f"the numbers of step {pending.step} are missing: {type(error).__name__}: {error}")
                continue
            self._hand_out(Frame(pending.step, pending.wall_time, series))

    def _with_derived(self, series: dict[str, Series], step: int) -> dict[str, Series]:
        """The metrics of a frame with those that follow from them; without, from where one cannot be computed."""
        if not self._derives:
            return series
        try:
            return with_derived(series)
        except Exception as error:
            if self._strict:
                raise
            self._derives = False
            warn(f"update_ratio and gain were switched off at step {step}: {type(error).__name__}: {error}")
            return series

    def _hand_out(self, frame: Frame) -> None:
        self._frames.append(frame)
        for sink in list(self.sinks):
            self._guarded(sink, sink.frame, frame)
        self._recent.append(frame)
        if self.diagnoses:
            context = Context(step=frame.step, frames=self._recent)
            self._ask(self._diagnosis.look_at_frame, context, frame.wall_time)

    def look(self, context: Context) -> None:
        """Ask the rules what they say to a look."""
        context.frames = self._recent
        self._ask(self._diagnosis.look, context, time.time())
        for sink in list(self.sinks):
            if isinstance(sink, FindingsFile):
                self._guarded(sink, sink.abstained, self.abstained)

    def _ask(self, look: Callable[[Context], list[Finding]], context: Context, wall_time: float) -> None:
        """Hand out what the rules say; the diagnosis alone is switched off where it fails as a whole."""
        try:
            findings = look(context) if self.diagnoses else []
        except Exception as error:
            if self._strict:
                raise
            self.diagnoses, findings = False, []
            warn(f"the diagnosis was switched off at step {context.step}: {type(error).__name__}: {error}")
        self._hand_out_findings(findings, wall_time)

    def _rule_failed(self, code: str, error: Exception) -> None:
        warn(f"the rule {code} was switched off: {type(error).__name__}: {error}")

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, each in its newest state, in the order in which they came."""
        return self._diagnosis.findings

    @property
    def abstained(self) -> Mapping[str, str]:
        """By code of each rule that could not tell when it was last asked: what was missing."""
        return self._diagnosis.abstained

    def report(self, finding: Finding, wall_time: float | None = None) -> None:
        """Add a finding and hand it to the sinks."""
        self._hand_out_findings(self._diagnosis.add(finding), time.time() if wall_time is None else wall_time)

    def _hand_out_findings(self, findings: Sequence[Finding], wall_time: float) -> None:
        for finding in findings:
            self.reactions.note(finding)
            is_new = identity(finding) not in self._known
            self._known.add(identity(finding))
            if self.on_finding is not None and is_new:
                self.on_finding(finding)
            for sink in list(self.sinks):
                self._guarded(sink, sink.finding, finding, wall_time)

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Hand named numbers to the sinks."""
        for sink in list(self.sinks):
            self._guarded(sink, sink.scalars, values, step, wall_time)

    def jacobian(self, block: JacobianBlock, step: int) -> None:
        """Hand a block to the sinks."""
        for sink in list(self.sinks):
            self._guarded(sink, sink.jacobian, block, step, time.time())

    def latest(self) -> dict[str, Series]:
        """The newest series of every metric."""
        self.deliver(wait=True)
        newest = Metrics()
        for frame in self._frames:
            newest.update(frame)
        return newest

    def history(self, metric: str, site: str) -> tuple[np.ndarray, np.ndarray]:
        """The logged steps of one value: ([n] int64 steps, [n] float32 values), oldest first.

        Raises:
            UnknownNameError: no such metric, or no such site in it; the message has the near misses.
        """
        self.deliver(wait=True)
        pairs = [
            (frame.step, frame[metric][site]) for frame in self._frames if metric in frame and site in frame[metric]
        ]
        if not pairs:
            metrics = {name for frame in self._frames for name in frame}
            sites = {s for frame in self._frames if metric in frame for s in frame[metric].schema.sites}
            known = sites if sites else metrics
            raise UnknownNameError(
                f"nothing logged for {metric!r} at {site!r}.{did_you_mean(site if sites else metric, known)}"
            )
        steps, values = zip(*pairs, strict=True)
        return np.array(steps, np.int64), np.array(values, np.float32)

    def close(self, *, sinks_too: bool) -> None:
        """Finish the sinks: close them, or flush them where they go on. Findings are handed out as they are now."""
        self._hand_out_findings(self._diagnosis.end(), time.time())
        for sink in list(self.sinks):
            self._guarded(sink, sink.close if sinks_too else sink.flush)

    def abandon(self) -> None:
        """Hand out nothing any more."""
        self.sinks.clear()
        self._pending.clear()

    def _guarded(self, sink: Sink, action: Callable[..., None], *args: Any) -> None:
        """Call a sink; one that raises is dropped with one warning."""
        try:
            action(*args)
        except Exception as error:
            if self._strict:
                raise
            self.sinks = [one for one in self.sinks if one is not sink]
            warn(f"the sink {sink.name!r} was switched off: {error}")
