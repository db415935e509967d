"""Checkpointed segments: which calls of the first forward are repeated by a part that runs again inside the backward.

Reentrant checkpointing runs its first forward without a graph, so that gradients exist only for the tensors of the
recomputation. They are recorded as those of the calls that they repeat.

Not here: that something is a segment at all (`reruns`).
"""

from __future__ import annotations

from torch import Tensor

from gradlab.sites.names import CallNumbers
from gradlab.taps.backward.hooks import GradHook, GradientRecorder
from gradlab.taps.backward.passes import Pass
from gradlab.taps.plan import Target


class Segment:
    """One checkpointed segment that is being recomputed, and the calls of the first forward that it repeats."""

    __slots__ = ("calls", "key", "named", "of_pass", "reentrant", "rest", "targets")

    def __init__(self, key: tuple[int, int], of_pass: Pass, *, reentrant: bool) -> None:
        self.key = key
        """The backward under way and the node in it that recomputes."""
        self.of_pass = of_pass
        self.reentrant = reentrant
        self.named = CallNumbers()
        self.calls: dict[str, list[bool]] = {}
        """For each call of a site whether it has a graph now."""
        self.targets: dict[str, list[Target | None]] | None = None
        """By site, the targets of the calls of the first forward that are repeated, once `claim` has found them."""
        self.rest: dict[str, int] = {}
        """By site, how many earlier calls of the pass are left to segments that come later."""

    def claim(self) -> None:
        """Take the calls of the first forward that these are; called when all have come by.

        Segments are recomputed last first, each in forward order: its calls are the last not yet accounted for. Those
        that again have no graph lie in segments inside this one, and are left for them.
        """
        if self.targets is not None:
            return
        self.targets = {}
        for site, have_graph in self.calls.items():
            waiting = self.of_pass.unhooked[site]
            start = self.rest[site] = max(0, len(waiting) - len(have_graph))
            own = self.targets[site] = waiting[start:]
            waiting[start:] = [target for target, has_graph in zip(own, have_graph, strict=False) if not has_graph]

    def end(self) -> None:
        """The segment's own backward is over: what nobody inside it has claimed has no gradient."""
        self.claim()
        for site, length in self.rest.items():
            del self.of_pass.unhooked[site][length:]

    def target(self, base: str, call: int) -> Target | None:
        """The target of the segment's own n-th call of a site; None where the first forward has its gradient."""
        self.claim()
        own = self.targets[base] if self.targets is not None else []
        return own[call] if call < len(own) else None


class SegmentHook(GradHook):
    """The hook of a recomputed tensor: which call of the first forward it repeats is known once it is called."""

    __slots__ = ("base", "call", "segment")

    def __init__(self, recorder: GradientRecorder, segment: Segment, base: str, call: int, tensor: Tensor) -> None:
        super().__init__(recorder, None, segment.of_pass, tensor)
        self.segment, self.base, self.call = segment, base, call

    def __call__(self, gradient: Tensor | None) -> None:
        target = self.segment.target(self.base, self.call)
        if target is not None:
            self.entry = target.grad
            super().__call__(gradient)
