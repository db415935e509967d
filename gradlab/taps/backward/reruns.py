"""Forwards that run inside a backward: repetitions of an earlier forward, or passes of their own.

Under activation checkpointing a node of the graph, or an op that asks for its saved tensors, runs a **segment** of the
forward again: its tensors belong to the pass that they repeat. What a hook of the user's runs there (the chunks of
GradCache, say) repeats nothing: it is an **inner pass**, which counts with the backward that it runs in.

Belongs here: which of the two a call is, by the place in the graph that runs it. Does not: which calls of the first
forward a segment repeats (`segments`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum

import torch

from gradlab.autograd_engine import NO_TASK, current_node, task_id
from gradlab.taps.backward.passes import Pass, Passes
from gradlab.taps.backward.segments import Segment

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


class Reruns:
    """What runs inside the backwards of the step under way."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        """Those under way, outermost first."""
        self._inner: Pass | None = None
        """The inner pass under way."""
        self._inner_place: tuple[int, int] | None = None
        """The task and the node that it runs in."""

    def forget(self) -> None:
        """No backward is under way any more."""
        self._segments.clear()
        self._inner = self._inner_place = None

    def find(self, passes: Passes, begin: Callable[[], Pass | None], *, whole: bool) -> Segment | Pass | None:
        """What a call of a module belongs to that runs now, inside a backward; None where it is not recorded.

        Args:
            passes: of the step.
            begin: begins an inner pass.
            whole: it is the model as a whole that is called.
        """
        node = current_node()
        place = (task_id(), node._sequence_nr() if node is not None else NO_TASK)
        if self._segments and self._segments[-1].key == place:
            return self._segments[-1]
        if self._inner_place == place:
            self._end_segments(place[0])
        else:
            by = _run_by()
            if by is not RunBy.HOOK and (segment := self._begin_segment(place, by, passes)) is not None:
                return segment
            if by is RunBy.CHECKPOINT:
                return None
            self._inner, self._inner_place = None, place
        if self._inner is None or whole:
            self._inner = begin()
        return self._inner

    @property
    def inner(self) -> Pass | None:
        """The inner pass under way, if any."""
        return self._inner

    def backward_ended(self, task: int) -> None:
        """A backward has ended: the inner pass that it went through is over."""
        if self._inner is not None and (self._inner.task == task or self._inner.inside == task):
            self._inner = None

    def nested_backward_ended(self, task: int) -> None:
        """So have the segments inside it, while the backward around it goes on."""
        self._end_segments(task)

    def _begin_segment(self, place: tuple[int, int], by: RunBy, passes: Passes) -> Segment | None:
        """The segment that the node at `place` recomputes; None where nothing is known that would be run again."""
        self._end_segments(place[0])
        if self._segments:
            self._segments[-1].claim()
            of_pass = self._segments[-1].of_pass
        elif passes:
            of_pass = passes.made(place[1])
            if by is RunBy.FUNCTION and not of_pass.unhooked:
                return None
        else:
            return None
        # The non-reentrant kind recomputes where an op asks for its saved tensors, and has gradients already.
        self._segments.append(Segment(place, of_pass, reentrant=by is RunBy.FUNCTION))
        return self._segments[-1]

    def _end_segments(self, task: int) -> None:
        """A node of this task runs a forward: segments that came before it, and all in tasks inside it, are over."""
        while any(one.key[0] >= task for one in self._segments):
            self._segments.pop().end()


def _run_by() -> RunBy:
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
