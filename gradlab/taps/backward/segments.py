"""Checkpointed segments: a forward that runs again inside the backward, and which calls of the first one it repeats.

Reentrant checkpointing runs its first forward without a graph, so that gradients exist only for the tensors of the
recomputation. They are put down to the calls that they repeat. A forward that a hook runs in a backward repeats
nothing: it is a pass of its own (`recorder`).
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradlab.sites.names import CallNumbers
from gradlab.taps.backward.hooks import GradHook, Pass

if TYPE_CHECKING:
    from gradlab.taps.backward.recorder import Recorder
    from gradlab.taps.plan import Target


_ENGINE = torch.autograd.graph._engine_run_backward.__code__
FUNCTION_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_FUNCTION = torch.autograd.function.BackwardCFunction.apply.__code__


class RunBy(Enum):
    """What runs a forward inside a backward."""

    CHECKPOINT = 1
    """Non-reentrant checkpointing, where an op asks for its saved tensors."""
    FUNCTION = 2
    """The backward of an autograd function: reentrant checkpointing, an invertible or an offloaded block."""
    HOOK = 3
    """A hook of the user's."""


def run_by() -> RunBy:
    """What runs the forward that this is called in, by the frames between here and the engine."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _ENGINE:
        code = frame.f_code
        if code is _FUNCTION:
            return RunBy.FUNCTION
        if code.co_name == "unpack_hook" and code.co_filename.endswith("checkpoint.py"):
            return RunBy.CHECKPOINT
        frame = frame.f_back  # type: ignore[assignment]
    return RunBy.HOOK


def makes_a_graph() -> bool:
    """Whether a graph comes of what runs now: with gradients on, or inside of an autograd function, which makes one."""
    if torch.is_grad_enabled():
        return True
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _ENGINE:
        if frame.f_code is FUNCTION_APPLY:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class Segment:
    """One checkpointed segment in recomputation: which calls of which sites have come by, and what they stand for."""

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
        self.rest: dict[str, int] = {}

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
    """The hook of a recomputed tensor: which call of the first forward it stands for is known once it fires."""

    __slots__ = ("base", "call", "segment")

    def __init__(self, recorder: Recorder, segment: Segment, base: str, call: int, tensor: Tensor) -> None:
        super().__init__(recorder, None, segment.of_pass, tensor)
        self.segment, self.base, self.call = segment, base, call

    def __call__(self, gradient: Tensor | None) -> None:
        target = self.segment.target(self.base, self.call)
        if target is not None:
            self.entry = target.grad
            super().__call__(gradient)
