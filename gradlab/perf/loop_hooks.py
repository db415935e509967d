"""LoopHooks: when the phases of a step begin and end in a plain training loop, which reports none of them itself.

Belongs here: the hooks on the model, on its backward and on the loader. Does not: the clock that they drive (clock.py).
Lightning needs none of them: it names its actions itself (`gradlab.lightning.phases`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import dataloader

from gradlab.autograd_engine import when_backward_ends
from gradlab.distributed import has_group
from gradlab.errors import never_stops_training
from gradlab.hooks.call_hooks import Hook, is_compiled
from gradlab.hooks.interpreter import is_batched, must_not_record, outside_modes
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.perf.clock import PhaseClock
from gradlab.sites.leaves import first_differentiable

_ITERATOR: Any = dataloader._BaseDataLoaderIter


class LoopHooks:
    """Drives `clock` by hooks on `model`, from `attach` to `detach`: forward, loss, backward, and waits for data.

    Args:
        clock: gets the phases.
        model: the module that the loop calls.
        on_batch: gets the arguments of each training forward.
        on_evaluation: called when the model runs in evaluation mode without gradients.
        on_error: gets what fails.

    Cost: some thirty microseconds a step, most of it torch's own for hooks on a tensor and on the end of a backward.
    """

    def __init__(
        self,
        clock: PhaseClock,
        model: nn.Module,
        *,
        on_batch: Callable[[tuple[Any, ...], dict[str, Any]], None],
        on_evaluation: Callable[[], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._clock = clock
        self._model = model
        self._on_batch = on_batch
        self._on_evaluation = on_evaluation
        self._on_error = on_error
        self.failure: Exception | None = None
        self._thread = threading.get_ident()
        self._handles: list[Any] = []
        self._leaf_hooks = LeafHooks()
        self._forward_depth = 0
        self._in_backward = False
        self._has_ranks = False

    def attach(self) -> None:
        """Put the hooks in. A model that is compiled in place has none: they would be inside its graph."""
        _loader_patch.attach(self)
        self._has_ranks = has_group()
        if not is_compiled(self._model) or type(self._model).__name__ == "OptimizedModule":
            begin, end = _Hook(self._forward_begins), _Hook(self._forward_ends)
            self._handles = [
                self._model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True),
                self._model.register_forward_hook(end, always_call=True),
            ]

    def detach(self) -> None:
        """Take the hooks out."""
        _loader_patch.detach(self)
        while self._handles:
            self._handles.pop().remove()
        self._leaf_hooks.remove()

    def fail(self, error: Exception) -> None:
        """One of the hooks has failed: those that are still in place do nothing any more."""
        self._on_error(error)
        self.failure = error

    @never_stops_training
    def data_begins(self) -> None:
        """A loader is asked for a batch."""
        if threading.get_ident() == self._thread:
            self._clock.enter("data")

    @never_stops_training
    def data_ended(self) -> None:
        """The loader has answered."""
        if threading.get_ident() == self._thread:
            self._clock.leave()

    @never_stops_training
    def optimizer_begins(self) -> None:
        """An optimizer's step begins."""
        self._clock.set_default("other")
        self._clock.enter("optimizer")

    @never_stops_training
    def optimizer_ended(self) -> None:
        """An optimizer's step has ended."""
        self._clock.leave()

    def step_ended(self) -> None:
        """A step has ended, and with it every forward and backward that was under way."""
        self._forward_depth, self._in_backward = 0, False
        self._leaf_hooks.remove()

    @never_stops_training
    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not self._model or must_not_record() or threading.get_ident() != self._thread:
            return
        self._forward_depth += 1
        if self._forward_depth > 1:  # a model that calls itself
            return
        if not module.training and not torch.is_grad_enabled():
            self._on_evaluation()
        else:
            with outside_modes():
                self._on_batch(args, kwargs)
        self._clock.enter("forward")

    @never_stops_training
    def _forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if (
            module is not self._model
            or must_not_record()
            or not self._forward_depth
            or threading.get_ident() != self._thread
        ):
            return
        self._forward_depth -= 1
        if self._forward_depth:
            return
        self._clock.leave()
        with outside_modes():
            end = first_differentiable(output) if torch.is_grad_enabled() else None
            if end is not None:
                self._clock.set_default("loss")
                self._leaf_hooks.register(end, self._backward_begins)

    @never_stops_training
    def _backward_begins(self, gradient: Tensor) -> None:
        """The gradient of the model's output is there. On a GPU this is the engine's thread; the loop's own waits."""
        if self._in_backward or must_not_record() or is_batched(gradient):
            return
        self._in_backward = True
        self._clock.set_default("other")
        self._clock.enter("backward")
        # Where there are ranks, queued twice over: after the callbacks with which DDP and FSDP finish their reductions.
        ends = self._backward_ends
        when_backward_ends((lambda: when_backward_ends(ends)) if self._has_ranks else ends)

    @never_stops_training
    def _backward_ends(self) -> None:
        if self._in_backward:
            self._in_backward = False
            self._clock.leave()


class _Hook(Hook):
    """A hook that stays out of compiled graphs."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> None:
        if not torch.compiler.is_compiling():  # asked here, where dynamo can see it
            self.function(*arguments)


class _LoaderPatch:
    """Calls every attached LoopHooks when a DataLoader is asked for a batch and when it has answered.

    PyTorch has no hook there, so the iterator's `__next__` is replaced while there is one, and put back afterwards.
    """

    def __init__(self) -> None:
        self._attached: tuple[weakref.ref[LoopHooks], ...] = ()
        self._original: Any = None
        self._replacement: Any = None

    def attach(self, hooks: LoopHooks) -> None:
        """Call `hooks` from now on."""
        if not self._attached and self._original is None:
            self._original = original = _ITERATOR.__next__

            def __next__(iterator: Any) -> Any:
                attached = [hooks for ref in self._attached if (hooks := ref()) is not None]
                for hooks in attached:
                    hooks.data_begins()
                try:
                    return original(iterator)
                finally:
                    for hooks in attached:
                        hooks.data_ended()

            self._replacement = _ITERATOR.__next__ = __next__
        self._attached = (*self._attached, weakref.ref(hooks))

    def detach(self, hooks: LoopHooks) -> None:
        """Call `hooks` no more."""
        self._attached = tuple(ref for ref in self._attached if ref() not in (hooks, None))
        # Where somebody else has replaced it since, ours stays in theirs and does nothing.
        if not self._attached and _ITERATOR.__next__ is self._replacement:
            _ITERATOR.__next__ = self._original
            self._original = self._replacement = None


_loader_patch = _LoaderPatch()
