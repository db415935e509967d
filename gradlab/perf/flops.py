"""How many floating point operations a step takes: counted once, on copies of the modules on the meta device.

Belongs here: which calls a step makes (`CallRecorder`), and the count of their operations (`count_flops`). Does not:
rates (metrics.py) and peak rates (devices.py).

`FlopCounterMode` on the real tensors misses CPU flash attention and would disturb the step; on the meta device every
shape is there, nothing is computed, and forward and backward together take some milliseconds.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from gradlab.autograd_engine import current_node, is_in_backward
from gradlab.errors import without_warnings
from gradlab.hooks.call_hooks import CALL_ATTRIBUTE, ModuleHook, is_compiled
from gradlab.hooks.interpreter import must_not_record, outside_modes, own_ops
from gradlab.hooks.mute import muting
from gradlab.perf.devices import device_of, precision_of
from gradlab.sites.names import all_modules, unwrapped


@dataclass(frozen=True)
class Call:
    """One outermost call of a module: its arguments, as tensors on the meta device."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    with_grad: bool
    precision: torch.dtype | str
    """The precision in which its matrices are multiplied."""


class CallRecorder:
    """Notes the outermost calls of a model, or of its direct parts where the model itself is not called.

    A LightningModule's `training_step` calls what it likes. Attached for one step; leaves no hook behind.
    """

    def __init__(self, model: nn.Module) -> None:
        root = unwrapped(model)
        modules = [root, *(part for child in root.children() for part in _callable_parts(child))]
        self.calls: list[Call] = []
        self._dtype = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)
        self._device = device_of(root)
        self._depth = 0
        self._thread = threading.get_ident()
        self._handles: list[Any] = []
        for module in modules:
            if not is_compiled(module):
                begin, end = ModuleHook(module, self._begin), ModuleHook(module, self._end)
                self._handles.append(module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True))
                self._handles.append(module.register_forward_hook(end, always_call=True))

    def close(self) -> None:
        """Take the hooks out."""
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_outside_step():
            return
        if self._depth == 0:
            with_grad, precision = torch.is_grad_enabled(), precision_of(self._dtype, self._device)
            with own_ops():
                inputs, named = tree_map(_on_meta, args), tree_map(_on_meta, kwargs)
            self.calls.append(Call(module, inputs, named, with_grad, precision))
        self._depth += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._is_outside_step():
            self._depth = max(0, self._depth - 1)

    def _is_outside_step(self) -> bool:
        """What another thread calls is no part of the step, and what a backward calls again was noted before."""
        return must_not_record() or is_in_backward() or threading.get_ident() != self._thread


def _callable_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or what is in it where it is a mere container without a forward."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _callable_parts(child)
    else:
        yield module


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty_like(value, dtype=dtype, device="meta").requires_grad_(value.requires_grad)


def count_flops(calls: list[Call]) -> int:
    """The operations of these calls, forward and backward, multiplications and additions counted apart.

    They are those of the model: what activation checkpointing computes a second time does not count. Everything is
    counted in float32, which changes no number of operations.
    Neither the modules nor any random state is touched. Raises whatever a forward raises that needs the values of
    tensors, or makes tensors on a device of its own.
    """
    copies: dict[int, nn.Module] = {}
    counter = _Counter()
    with ExitStack() as stack:
        stack.enter_context(outside_modes())
        stack.enter_context(muting())
        stack.enter_context(_random_state_kept())
        for device_type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device_type, dtype=torch.bfloat16, enabled=False))
        stack.enter_context(without_warnings())  # what the model warns about, it warns about in the step itself
        stack.enter_context(counter)
        for call in calls:
            if id(call.module) not in copies:
                copies[id(call.module)] = _meta_copy(call.module)
            _run(copies[id(call.module)], call, counter)
    return int(counter.get_total_flops())


class _Counter(FlopCounterMode):
    """Counts what the model needs, and not what checkpointing recomputes during the backward.

    A backward that makes no graph runs its nodes with gradients switched off, and every kind of checkpointing switches
    them on to run a forward again. So what runs with gradients on is recomputation, whoever's checkpointing it is.
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker: Any = _NoModuleTracker()
        self.is_in_backward = False

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if self.is_in_backward and (torch.is_grad_enabled() or _is_in_checkpoint()):
            return out
        return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


def _is_in_checkpoint() -> bool:
    """Whether the backward is in the node of a reentrant checkpoint, one inside which has gradients off again."""
    node = current_node()
    return node is not None and node.name().endswith("CheckpointFunctionBackward")


class _NoModuleTracker(nullcontext[None]):
    """In place of torch's tracker, whose hooks name the module of each operation and fail where a forward calls
    `autograd.grad`."""

    parents = frozenset({"Global"})


def _run(module: nn.Module, call: Call, counter: _Counter) -> None:
    with torch.set_grad_enabled(call.with_grad):
        output = module(*call.args, **call.kwargs)
    ends = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.requires_grad]
    if ends:
        counter.is_in_backward = True
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        counter.is_in_backward = False


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying a single number; without hooks, and without Lightning's trainer.

    Not `deepcopy` of the whole: the attributes of a module may lead anywhere, as to the trainer and its data.
    """
    parts = list(all_modules(module))
    memo: dict[int, Any] = {id(part): part.__class__.__new__(part.__class__) for part in parts}
    loose = (value for part in parts for value in vars(part).values() if isinstance(value, Tensor))
    for tensor in chain(module.parameters(), module.buffers(), loose):
        empty = _on_meta(tensor.detach())
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    for part in parts:
        for name, value in vars(part).items():
            copied = _copied_attribute(name, value, memo)
            if copied is not _NO_COPY:
                vars(memo[id(part)])[name] = copied
    return memo[id(module)]


_NO_COPY = object()


def _copied_attribute(name: str, value: Any, memo: dict[int, Any]) -> Any:
    """The copy of an attribute of a module, or `_NO_COPY` where there can be none."""
    if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
        return type(value)()
    if name == "_trainer":
        return None
    if name == CALL_ATTRIBUTE:  # a call hook of ours
        return _NO_COPY
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a file, a process group: what a forward needs of it will be missed
        return value if callable(value) else _NO_COPY


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
