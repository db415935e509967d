"""The dispatch log: every op of one step as torch dispatches it, with its module, its line and what it writes.

Belongs here: turning what torch dispatches into events of the dataflow. Does not: what follows from them (`dataflow`,
`search`).
"""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from gradlab.autograd_engine import current_node, is_in_backward, next_node_number
from gradlab.hooks.call_hooks import Hook
from gradlab.identity import IdentityDict
from gradlab.nonfinite.dataflow import Dataflow, Event, Place, plain_tensors
from gradlab.sites.leaves import leaves
from gradlab.sites.names import CallNumbers, module_names, parameter_names
from gradlab.sites.user_code import is_internal


class DispatchLog(TorchDispatchMode):
    """Records every op that runs while this mode is entered.

    Args:
        dataflow: gets an event for each op.
        model: gives modules and parameters their names.
        seed: called with each tensor whose backward starts, its gradient being one.
    """

    def __init__(self, dataflow: Dataflow, model: nn.Module, seed: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dataflow = dataflow
        self.seed = seed
        self.parameters = {id(p): name for name, p in parameter_names(model).items()}
        self.modules = ModuleStacks(module_names(model))
        self.thread = threading.get_ident()
        self.sequence: list[int] = []
        self.calls: list[Place] = []
        """For each entry of `sequence`, the forward op that was under way before that number was given out."""
        self.was_backward = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Else torch imports its compiler, which takes a second. Compiled code is run eagerly as it is.

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(is_traceable_wrapper_subclass_type(t) for t in types):
            return NotImplemented  # The subclass unwraps itself, and its inner ops come here.
        place = self.place()
        form = _form(func)
        if form.is_view:
            return func(*args, **kwargs)
        if form.seeds_backward and _called_from("_make_grads"):
            self.seed(args[0])
        written = plain_tensors(form.written(args, kwargs))
        ignored = {id(t) for t in written} if form.overwrites else set()
        given = [t for t in plain_tensors((*args, *kwargs.values())) if id(t) not in ignored]
        read = [one for one in map(self.dataflow.read, given) if one is not None]
        result = func(*args, **kwargs)
        known = {t.untyped_storage()._cdata for t in (*given, *written)}
        outputs = [t for t in plain_tensors((result,)) if t.untyped_storage()._cdata not in known]
        if written or outputs:
            event = Event(form.name, place, read, _holds_infinity((*args, *kwargs.values())))
            self.dataflow.wrote(event, (*written, *outputs), over=form.overwrites, fresh=form.is_fresh)
        return result

    def place(self) -> Place:
        """Where the op stands that is being run."""
        in_backward = is_in_backward()
        line, recomputed = _line(in_backward)
        module = self.modules.current()
        if in_backward and not recomputed:
            self.was_backward = True
            return self.backward_place(current_node(), line)
        after = self.was_backward and not in_backward and not torch.is_grad_enabled()
        place = Place("update" if after else "forward", "", module, line)
        if threading.get_ident() == self.thread:
            self.sequence.append(next_node_number())
            self.calls.append(place)
        return place

    def backward_place(self, node: Any, line: str) -> Place:
        """A node was made during the first forward op that saw a higher sequence number than the node's."""
        if node is None:
            return Place("backward", "", "", line)
        variable = getattr(node, "variable", None)
        if variable is not None:  # AccumulateGrad
            return Place("backward", node.name(), self.parameters.get(id(variable), ""), line)
        index = bisect_right(self.sequence, node._sequence_nr())
        if index == len(self.calls):
            return Place("backward", node.name(), "", line)
        call = self.calls[index]
        return Place("backward", node.name(), call.module, line or call.line)


class ModuleStacks:
    """The modules that are running, by thread, as sites name them: `encoder.0`, then `encoder.0#2`."""

    def __init__(self, names: IdentityDict[nn.Module, str]) -> None:
        self.names = names
        self.stacks: dict[int, list[str]] = {}
        self.numbers = CallNumbers()

    def install(self, stack: ExitStack) -> None:
        """Follow the modules until the stack closes."""
        for module, name in self.names.items():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(_Enter(self, name), prepend=True).remove)
                stack.callback(module.register_forward_hook(_Leave(self), always_call=True).remove)

    def current(self) -> str:
        """The innermost module, or ""."""
        stack = self.stacks.get(threading.get_ident())
        return stack[-1] if stack else ""

    def enter(self, name: str) -> None:
        stack = self.stacks.setdefault(threading.get_ident(), [])
        if not is_in_backward():  # A recomputed call is no call of its own.
            if not stack:
                self.numbers.clear()
            name = self.numbers.next(name)
        stack.append(name)

    def leave(self) -> None:
        stack = self.stacks.get(threading.get_ident())
        if stack:
            stack.pop()


class _Enter(Hook):
    """Before a module."""

    __slots__ = ("name", "stacks")

    def __init__(self, stacks: ModuleStacks, name: str) -> None:
        self.stacks, self.name = stacks, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.stacks.names.get(module) == self.name:  # and no copy of it
            self.stacks.enter(self.name)


class _Leave(Hook):
    """After a module, also where it raised."""

    __slots__ = ("stacks",)

    def __init__(self, stacks: ModuleStacks) -> None:
        self.stacks = stacks

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self.stacks.names:
            self.stacks.leave()


class NameInputs(Hook):
    """Before the model: the memory of its inputs gets their names."""

    __slots__ = ("dataflow",)

    def __init__(self, dataflow: Dataflow) -> None:
        self.dataflow = dataflow

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        values = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
        for suffix, tensor in leaves(values):
            self.dataflow.name(tensor, f"input{suffix}")


_OVERWRITES = frozenset(
    "copy_ fill_ zero_ normal_ uniform_ bernoulli_ exponential_ random_ log_normal_ cauchy_".split()
)
_FRESH = frozenset("empty empty_like empty_strided new_empty new_empty_strided empty_permuted".split())


@dataclass(frozen=True)
class _Form:
    name: str
    is_view: bool
    overwrites: bool
    is_fresh: bool
    seeds_backward: bool
    positions: tuple[tuple[int, str], ...]

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The arguments that the op writes into."""
        return [args[i] if i < len(args) else kwargs.get(name) for i, name in self.positions]


@lru_cache(maxsize=4096)
def _form(func: Any) -> _Form:
    arguments = list(enumerate(func._schema.arguments))
    written = [(i, a) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]
    op = func._schema.name.split("::")[-1]
    return _Form(
        name=str(func),
        is_view=getattr(func, "is_view", False),
        overwrites=op in _OVERWRITES or (bool(written) and all(a.kwarg_only for _, a in written)),
        is_fresh=op in _FRESH,
        seeds_backward=op == "ones_like",
        positions=tuple((i, a.name) for i, a in written),
    )


def _holds_infinity(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) and math.isinf(value) for value in values)


def _line(in_backward: bool) -> tuple[str, bool]:
    """`file:line` of the nearest frame outside torch and gradlab, and whether a checkpoint recomputes there.

    In the backward, only code that the engine itself has called counts: a custom Function, or what is recomputed.
    """
    frame: Any = sys._getframe(2)
    while (
        frame is not None and is_internal(frame.f_code.co_filename) and frame.f_code.co_name != "_engine_run_backward"
    ):
        frame = frame.f_back
    if frame is None or is_internal(frame.f_code.co_filename):
        return "", False
    line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    recomputed = False
    while in_backward and not recomputed and frame is not None and frame.f_code.co_name != "_engine_run_backward":
        recomputed = frame.f_code.co_filename.endswith("torch/utils/checkpoint.py")
        frame = frame.f_back
    return line, recomputed


def _called_from(function: str) -> bool:
    """Whether one of the nearest callers of the dispatched op has this name."""
    frame: Any = sys._getframe(2)
    for _ in range(4):
        if frame is None or frame.f_code.co_name == function:
            break
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == function
