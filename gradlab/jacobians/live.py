"""Live slices: the Jacobian on the training step's own graph, with its dropout, its batch statistics and its data.

A forward that is due is watched, and the places of both sites in the graph are kept as gradient edges, which in-place
operations do not move. The rows are pulled back inside the training backward, in a hook on the model's output, just
before the graph is used up. What training would notice is kept as it is: `.grad` of tensors that retain one, random
numbers, and gradlab's own hooks look away. Gradient hooks of the user's do act on a live Jacobian.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from gradlab.autograd_engine import is_in_backward
from gradlab.errors import JacobianError, did_you_mean, shortlist
from gradlab.frame import JacobianBlock
from gradlab.hooks.call_hooks import OwnThreadHook, has_compiled_call
from gradlab.hooks.interpreter import in_selective_checkpoint, is_batched, must_not_record, outside_modes
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.hooks.mute import muting
from gradlab.jacobians.audit import prepare, tolerance
from gradlab.jacobians.engines.fallback import Ladder
from gradlab.jacobians.measure import Solved, block_of
from gradlab.jacobians.problem_setup import pose
from gradlab.jacobians.request import Question
from gradlab.jacobians.subgraph import Region, independent, parameter_named
from gradlab.sites.forward import forward_walk
from gradlab.sites.names import all_modules, unwrapped

_ENGINES = ["vmap", "is_grads_batched", "loop"]


class LiveSlice:
    """Measures one slice on the graph of the first training forward and backward of each step that is due."""

    def __init__(self, model: nn.Module, question: Question, samples: int, seed: int) -> None:
        """Take the question; `samples` is how many of the batch at most.

        Raises:
            JacobianError: if the model has compiled parts, whose inside no hook sees.
        """
        self.core = unwrapped(model)
        _refuse_compiled(model)
        self.question, self.samples, self.seed = question, samples, seed
        self.ladder = Ladder()
        self.step = 0
        self.capture: _Capture | None = None

    def begin(self, step: int) -> None:
        """Watch the next forward."""
        self.drop()
        self.step = step
        parameter = parameter_named(self.core, self.question.wrt)
        self.capture = _Capture(self, parameter)
        self.capture.open()

    def end(self) -> JacobianBlock | None:
        """The block of the step that has ended; None where no backward went through the output.

        Raises:
            JacobianError: what went wrong inside the forward or the backward, which must not be disturbed there.
        """
        capture = self.capture
        was_complete = capture is not None and capture.complete
        self.drop()
        if capture is None:
            return None
        solved, capture.solved = capture.solved, None  # The output's hook may keep the capture alive, and it the graph.
        if capture.error is not None:
            raise capture.error
        if solved is None:
            if not capture.ran:
                raise JacobianError(
                    "no forward of the whole model that needs gradients was seen in this step, at most parts of it; "
                    "use mode='replay' with a probe batch."
                )
            if not was_complete:
                raise JacobianError(capture.why_not_reached())
            return None
        error = solved.audit_error()
        block = block_of(self.question, self.ladder, solved, error)
        if error > tolerance(solved.blocks.dtype) and not self.ladder.at_bottom:
            self.ladder.step_down(f"its audit error is {error:.1e}")
        return block

    def question_for(self, batch: int | None, of: Tensor, wrt: Tensor) -> Question:
        """The question, with as many samples as there are, where they can be told apart."""
        ends = (of,) if isinstance(wrt, nn.Parameter) else (of, wrt)
        if batch is None or any(t.dim() == 0 or len(t) != batch for t in ends):
            return self.question
        return replace(self.question, samples=min(self.samples, batch))

    def drop(self) -> None:
        """Let go of hooks and graph."""
        if self.capture is not None:
            self.capture.close()
            self.capture = None


class _Capture:
    """One step's forward and backward."""

    def __init__(self, live: LiveSlice, parameter: nn.Parameter | None) -> None:
        self.live = live
        self.parameter = parameter
        self.hooks = ExitStack()
        self.seen: dict[str, None] = {}
        self.wrt: tuple[Tensor, GradientEdge | None] | None = None
        self.of: tuple[Tensor, GradientEdge] | None = None
        self.batch: int | None = None
        self.retaining: list[weakref.ref[Tensor]] = []
        self.leaf_hooks = LeafHooks()
        self.solved: Solved | None = None
        self.error: JacobianError | None = None
        self.is_measuring = False
        self.ran = False
        self.begins = False
        """Whether the graph begins at `wrt`, which does not require grad by itself."""

    @property
    def complete(self) -> bool:
        return self.of is not None and self.wrt is not None

    def open(self) -> None:
        core, question = self.live.core, self.live.question
        if self.parameter is not None:
            if not self.parameter.requires_grad:
                self.error = JacobianError(
                    f"wrt={question.wrt!r} is frozen, so the live graph has no path to it; use mode='replay'."
                )
                return
            self.wrt = (self.parameter, None)
        self.hooks.enter_context(forward_walk(core, self))
        watcher = _RetainWatcher(self.retaining)
        handles = [
            core.register_forward_pre_hook(OwnThreadHook(core, lambda *_: watcher.enter()), prepend=True),
            core.register_forward_hook(OwnThreadHook(core, lambda *_: watcher.leave()), always_call=True),
        ]
        for handle in handles:
            self.hooks.callback(handle.remove)
        self.hooks.callback(watcher.leave)

    def close(self) -> None:
        self.hooks.close()
        self.leaf_hooks.remove()
        self.of = self.wrt = None

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        if is_in_backward():
            return self.again(site, value)
        if not torch.is_grad_enabled() or must_not_record() or (self.complete and self.solved is not None):
            return None
        try:
            if in_selective_checkpoint():
                raise JacobianError(
                    "mode='live' cannot be had here: a part of the forward is under selective activation "
                    "checkpointing, whose graph can be gone through once only; use mode='replay'."
                )
            with outside_modes():
                return self.note(site, value)
        except JacobianError as error:
            self.error = error
        return None

    def note(self, site: str, value: Tensor) -> Tensor | None:
        question = self.live.question
        self.seen[site] = None
        # An in-place operation on a view leaves the view's edge aside; on a copy, with the same numbers, it does not.
        new = (
            value.clone() if value._is_view() and value.requires_grad and site in (question.of, question.wrt) else None
        )
        if self.batch is None and site.split("[")[0] == "input":
            self.batch = len(value) if value.dim() > 1 else None
        if site == question.wrt and self.wrt is None:
            new = self.note_wrt(value if new is None else new)
        if site == question.of and self.of is None:
            here = value if new is None else new
            if not here.is_floating_point():
                raise JacobianError(f"of={site!r} is {str(here.dtype)[6:]}, which cannot be differentiated.")
            if here.requires_grad:
                # Only its shape is needed, and behind a softmax its values, as they are now.
                kept = here.detach().clone() if question.of_map else here.detach()
                self.of = (kept, get_gradient_edge(here))
        here = value if new is None else new
        if here.requires_grad:
            self.retaining += [weakref.ref(value), weakref.ref(here)]
            if site.split("[")[0] == "output":
                self.ran = True
                self.leaf_hooks.register(here, self.fire)
        return new

    def note_wrt(self, value: Tensor) -> Tensor:
        """Keep the place; the tensor that goes on, `value` itself where the graph has begun already."""
        if not value.is_floating_point():
            raise JacobianError(
                f"wrt={self.live.question.wrt!r} is {str(value.dtype)[6:]}, which has no gradient; "
                "take a floating-point tensor behind it, such as the output of an embedding."
            )
        if not value.requires_grad:
            value = _beginning(value)
            self.begins = True
        self.wrt = (value.detach(), get_gradient_edge(value))
        return value

    def again(self, site: str, value: Tensor) -> Tensor | None:
        """A checkpointed part of the forward runs again in the backward, and has to build the same graph again."""
        with outside_modes():
            begins = self.begins and site == self.live.question.wrt and not value.requires_grad
            return _beginning(value) if begins else None

    def fire(self, grad: Tensor) -> None:
        """The training backward has come to the output: its graph is whole, and about to be used up."""
        if self.is_measuring or self.solved is not None or self.error is not None or not self.complete:
            return
        if must_not_record() or is_batched(grad):
            return
        self.is_measuring = True
        try:
            with muting(), outside_modes(), _grads_kept(self.retaining), torch.random.fork_rng(devices=[]):
                self.solved = self.measure()
        except Exception as error:
            self.error = (
                error if isinstance(error, JacobianError) else JacobianError(f"{type(error).__name__}: {error}")
            )
        finally:
            self.is_measuring = False

    def measure(self) -> Solved:
        assert self.of is not None and self.wrt is not None
        live = self.live
        widest = max(self.of[0].nbytes, self.wrt[0].nbytes)
        region = Region(self.of[0], self.wrt[0], widest, None, None, self.of[1], self.wrt[1])
        problem = pose(live.question_for(self.batch, self.of[0], self.wrt[0]), region, self.batch, live.ladder)
        if not live.ladder.rungs:
            live.ladder.rungs = _ENGINES[:] if len(problem.vectors) > 1 else ["loop"]
        audit = prepare(problem, torch.Generator().manual_seed(live.seed + live.step))
        if audit is None:
            raise JacobianError(independent(live.question.of, live.question.wrt))
        while True:
            try:
                return Solved(problem, live.ladder.solve(problem), audit)
            except JacobianError:
                raise
            except Exception as error:
                live.ladder.step_down(error)

    def why_not_reached(self) -> str:
        question = self.live.question
        for role, site in (("of", question.of), ("wrt", question.wrt)):
            if site not in self.seen and not (role == "wrt" and self.parameter is not None):
                near = did_you_mean(site, self.seen)
                return f"{role}={site!r} is no site in this forward.{near} It has: {shortlist(self.seen)}."
        return independent(question.of, question.wrt)


def _beginning(value: Tensor) -> Tensor:
    """A copy of our own that requires grad in the place of a tensor, with the same numbers: the graph begins here."""
    return value.detach().requires_grad_().clone()


class _RetainWatcher(TorchFunctionMode):
    """Notes whoever calls `retain_grad` in the forward of one thread, on tensors that are no site."""

    def __init__(self, noted: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self.noted = noted
        self.depth = 0
        self.thread = get_ident()

    def enter(self) -> None:
        if must_not_record() or get_ident() != self.thread:
            return
        if self.depth == 0:
            self.__enter__()  # type: ignore[no-untyped-call]
        self.depth += 1

    def leave(self) -> None:
        if must_not_record() or get_ident() != self.thread:
            return
        if self.depth == 1:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.depth = max(0, self.depth - 1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.retain_grad:
            self.noted.append(weakref.ref(args[0]))
        return func(*args, **(kwargs or {}))


@contextmanager
def _grads_kept(tensors: list[weakref.ref[Tensor]]) -> Iterator[None]:
    """Tensors that retain their gradient get it back as it was: a probe's backward would add to it, or worse, leave a
    tensor of vmap's there."""
    retaining = {id(t): t for ref in tensors if (t := ref()) is not None and t.retains_grad}
    kept = [(t, t.grad) for t in retaining.values()]
    for t, _ in kept:
        t.grad = None
    try:
        yield
    finally:
        for t, grad in kept:
            t.grad = grad


def _refuse_compiled(model: nn.Module) -> None:
    for module in all_modules(model):
        if has_compiled_call(module):
            raise JacobianError(
                "mode='live' cannot see sites inside a compiled graph, and this model has one; "
                "use mode='replay', which runs the same model eagerly."
            )
