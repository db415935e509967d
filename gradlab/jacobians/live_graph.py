"""The subgraph between `wrt` and `of` in a training step: places noted in its forward, used inside its backward.

The places of both sites are kept as gradient edges, which in-place operations do not move. A hook on the model's output
calls back inside the training backward, just before the graph is used up. What training would notice is kept as it is:
`.grad` of tensors that retain one, and random numbers; gradlab's own hooks are muted meanwhile. Gradient hooks of the
user's do act on a Jacobian of this graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradlab.autograd_engine import is_in_backward
from gradlab.errors import JacobianError, did_you_mean, shortlist
from gradlab.hooks.call_hooks import OwnThreadHook
from gradlab.hooks.interpreter import in_selective_checkpoint, is_batched, must_not_record, outside_modes
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.hooks.mute import muting
from gradlab.jacobians.block import Solved
from gradlab.jacobians.options import Slice
from gradlab.jacobians.retained_grads import RetainGradWatcher, retained_grads_kept
from gradlab.jacobians.subgraph import Subgraph, independent, parameter_named
from gradlab.sites.forward import forward_walk

Measure = Callable[[Subgraph, int | None], Solved]
"""From the subgraph and the batch's number of samples (None without a sample axis) to the blocks."""


class LiveGraph:
    """The graph of one step's first forward: watched from `open` on, measured in its backward, dropped by `close`."""

    def __init__(self, core: nn.Module, what: Slice, measure: Measure) -> None:
        """Take the model inside any wrappers, the slice, and what measures it inside the backward."""
        self.core, self.what, self.measure = core, what, measure
        self.parameter = parameter_named(core, what.wrt)
        self.hooks = ExitStack()
        self.seen: dict[str, None] = {}
        self.wrt: tuple[Tensor, GradientEdge | None] | None = None
        self.of: tuple[Tensor, GradientEdge] | None = None
        self.batch: int | None = None
        self.retaining: list[weakref.ref[Tensor]] = []
        self.leaf_hooks = LeafHooks()
        self.is_measuring = False
        self.begins_at_wrt = False
        """Whether `wrt` did not require grad by itself, so that a copy of it that does begins the graph."""
        self.saw_output = False
        """Whether a forward of the whole model came to an output that requires grad."""
        self.solved: Solved | None = None
        self.error: JacobianError | None = None
        """What went wrong inside the forward or the backward, which must not be disturbed there."""

    @property
    def has_both_ends(self) -> bool:
        """Whether both sites have been seen, with a graph."""
        return self.of is not None and self.wrt is not None

    def open(self) -> None:
        """Watch the next forward."""
        if self.parameter is not None:
            if not self.parameter.requires_grad:
                self.error = JacobianError(
                    f"wrt={self.what.wrt!r} is frozen, so the live graph has no path to it; use mode='replay'."
                )
                return
            self.wrt = (self.parameter, None)
        self.hooks.enter_context(forward_walk(self.core, self))
        watcher = RetainGradWatcher(self.retaining)
        handles = [
            self.core.register_forward_pre_hook(OwnThreadHook(self.core, lambda *_: watcher.enter()), prepend=True),
            self.core.register_forward_hook(OwnThreadHook(self.core, lambda *_: watcher.leave()), always_call=True),
        ]
        for handle in handles:
            self.hooks.callback(handle.remove)
        self.hooks.callback(watcher.leave)

    def close(self) -> None:
        """Let go of hooks and graph."""
        self.hooks.close()
        self.leaf_hooks.remove()
        self.of = self.wrt = None

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        """A tensor of the forward, by its site; the one that the forward goes on with, or None for the same."""
        if is_in_backward():
            return self._recomputed(site, value)
        if not torch.is_grad_enabled() or must_not_record() or (self.has_both_ends and self.solved is not None):
            return None
        try:
            if in_selective_checkpoint():
                raise JacobianError(
                    "mode='live' cannot be had here: a part of the forward is under selective activation "
                    "checkpointing, whose graph can be gone through once only; use mode='replay'."
                )
            with outside_modes():
                return self._note(site, value)
        except JacobianError as error:
            self.error = error
        return None

    def _note(self, site: str, value: Tensor) -> Tensor | None:
        self.seen[site] = None
        # After an in-place operation on a view, the view's edge is no longer on the path to what follows; that of a
        # copy, with the same numbers, is.
        is_end = site in (self.what.of, self.what.wrt)
        new = value.clone() if is_end and value._is_view() and value.requires_grad else None
        if self.batch is None and site.split("[")[0] == "input":
            self.batch = len(value) if value.dim() > 1 else None
        if site == self.what.wrt and self.wrt is None:
            new = self._note_wrt(value if new is None else new)
        onward = value if new is None else new
        if site == self.what.of and self.of is None:
            self._note_of(onward)
        if onward.requires_grad:
            self.retaining += [weakref.ref(value), weakref.ref(onward)]
            if site.split("[")[0] == "output":
                self.saw_output = True
                self.leaf_hooks.register(onward, self._in_backward)
        return new

    def _note_wrt(self, value: Tensor) -> Tensor:
        """Keep the place; the tensor that goes on, `value` itself where the graph has begun already."""
        if not value.is_floating_point():
            raise JacobianError(
                f"wrt={self.what.wrt!r} is {str(value.dtype)[6:]}, which has no gradient; "
                "take a floating-point tensor behind it, such as the output of an embedding."
            )
        if not value.requires_grad:
            value = _beginning_of_graph(value)
            self.begins_at_wrt = True
        self.wrt = (value.detach(), get_gradient_edge(value))
        return value

    def _note_of(self, value: Tensor) -> None:
        if not value.is_floating_point():
            raise JacobianError(f"of={self.what.of!r} is {str(value.dtype)[6:]}, which cannot be differentiated.")
        if value.requires_grad:
            # Only its shape is needed, and behind a softmax its values, as they are now.
            kept = value.detach().clone() if self.what.of_map else value.detach()
            self.of = (kept, get_gradient_edge(value))

    def _recomputed(self, site: str, value: Tensor) -> Tensor | None:
        """A checkpointed part of the forward runs again in the backward, and has to build the same graph again."""
        with outside_modes():
            begins = self.begins_at_wrt and site == self.what.wrt and not value.requires_grad
            return _beginning_of_graph(value) if begins else None

    def _in_backward(self, grad: Tensor) -> None:
        """The training backward has come to the output: its graph is whole, and about to be used up."""
        if self.is_measuring or self.solved is not None or self.error is not None:
            return
        if self.of is None or self.wrt is None or must_not_record() or is_batched(grad):
            return
        self.is_measuring = True
        widest = max(self.of[0].nbytes, self.wrt[0].nbytes)
        subgraph = Subgraph(self.of[0], self.wrt[0], widest, None, None, self.of[1], self.wrt[1])
        try:
            with muting(), outside_modes(), retained_grads_kept(self.retaining), torch.random.fork_rng(devices=[]):
                self.solved = self.measure(subgraph, self.batch)
        except Exception as error:
            if not isinstance(error, JacobianError):
                error = JacobianError(f"{type(error).__name__}: {error}")
            self.error = error
        finally:
            self.is_measuring = False

    def explain_failure(self) -> str:
        """The message for a forward that did not have both ends."""
        for role, site in (("of", self.what.of), ("wrt", self.what.wrt)):
            if site not in self.seen and not (role == "wrt" and self.parameter is not None):
                near = did_you_mean(site, self.seen)
                return f"{role}={site!r} is no site in this forward.{near} It has: {shortlist(self.seen)}."
        return independent(self.what.of, self.what.wrt)


def _beginning_of_graph(value: Tensor) -> Tensor:
    """A copy of our own that requires grad, with the same numbers."""
    return value.detach().requires_grad_().clone()
