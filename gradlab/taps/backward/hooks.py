"""Hooks on the gradients of tensors: put on in the forward, called in the backward, holding no tensor themselves.

A hook knows the pass that its tensor belongs to. Which row of slots it writes to is decided by the recorder, when the
first gradient of a backward arrives at the pass.

Not here: hooks on parameters (`parameters`, `recorder`), which are read when a backward has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from gradlab.autograd_engine import task_id
from gradlab.hooks.interpreter import has_function_modes, is_batched, must_not_record, num_dispatch_modes, own_ops
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.taps.backward.passes import Pass
from gradlab.taps.buffer.layout import Entry
from gradlab.taps.buffer.rows import Row

_OURS = "gradlab"


class GradientRecorder(Protocol):
    """What a hook on a gradient calls."""

    @property
    def leaf_hooks(self) -> LeafHooks:
        """Takes the hooks of leaves, which no graph takes along when it is freed."""

    @property
    def failed(self) -> Callable[[str, BaseException], None]:
        """Called with a site and the error of its tap."""

    def enter_task(self, task: int, of_pass: Pass) -> None:
        """The first gradient of a backward arrives at a pass: set the row that its hooks write to."""

    def gradient_failed(self, entries: Sequence[Entry], row: Row, gradient: Tensor) -> None:
        """The gradient of some sites could not be read for all of them."""


class TensorHooks(dict[Any, Any]):
    """The hooks of one tensor, gradlab's always last: it sees the gradient as those of the user's have left it."""

    __slots__ = ("__weakref__",)

    def __setitem__(self, key: Any, hook: Any) -> None:
        ours = self.pop(_OURS)
        super().__setitem__(key, hook)
        super().__setitem__(_OURS, ours)


class GradHook:
    """Reduces a gradient into the slots of its pass when it comes. Holds ids and slots, never a tensor.

    It is put into the tensor's dictionary of hooks by hand, which costs less than half of `register_hook` and of a
    node's pre-hook: no handle is made.
    """

    __slots__ = ("also", "entry", "number", "of_pass", "recorder")
    __torch_unserializable__ = True  # torch.save of a tensor needs no warning that this hook is left out

    def __init__(
        self, recorder: GradientRecorder, entry: Entry | None, of_pass: Pass, tensor: Tensor | None = None
    ) -> None:
        """Wait for the gradient of a tensor, as it is now: before any in-place op that follows."""
        self.recorder = recorder
        self.entry = entry
        self.of_pass = of_pass
        self.number = 0
        self.also: tuple[Entry, ...] = ()
        """Of further sites whose tensor is the same one."""
        if tensor is not None:
            self._put_on(tensor)

    def _put_on(self, tensor: Tensor) -> None:
        node, hooks = tensor.grad_fn, tensor._backward_hooks
        if node is None:
            self.recorder.leaf_hooks.register(tensor, self)
        elif hooks is None and type(tensor) is Tensor:
            tensor._backward_hooks = TensorHooks({_OURS: self})
            node._register_hook_dict(tensor)  # type: ignore[attr-defined]
        elif type(hooks) is TensorHooks and (first := hooks[_OURS]).of_pass is self.of_pass and type(first) is GradHook:
            if self.entry is not None:
                first.also = (*first.also, self.entry)
        else:
            self.number = tensor.output_nr
            node.register_prehook(self.on_node)

    def on_node(self, gradients: tuple[Tensor | None, ...]) -> None:
        """The gradients of all that a node made have come."""
        self(gradients[self.number])

    def __call__(self, gradient: Tensor | None) -> None:
        of_pass = self.of_pass
        try:
            if of_pass.task != task_id():
                if must_not_record() or is_batched(gradient):  # as in a probe's backward inside the training one
                    return
                self.recorder.enter_task(task_id(), of_pass)
                of_pass.modes = has_function_modes() or num_dispatch_modes() > 0
            if gradient is None:  # of several outputs of one node, another was used
                return
        except Exception as error:
            self.recorder.failed(self.entry.site if self.entry else "", error)
            return
        try:
            if of_pass.modes:
                with own_ops():
                    self._write(of_pass.task_row, gradient)
            else:
                self._write(of_pass.task_row, gradient)
        except Exception:
            with own_ops():
                entries = (*((self.entry,) if self.entry is not None else ()), *self.also)
                self.recorder.gradient_failed(entries, of_pass.task_row, gradient)

    def _write(self, row: Row, gradient: Tensor) -> None:
        if self.entry is not None:
            row.write(self.entry, gradient)
        for other in self.also:
            row.write(other, gradient)
