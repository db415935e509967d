"""Named ranges in a trace: one around each module's forward, by hooks that live no longer than a window.

Belongs here: what a range is called, and where the hooks go. Does not: when a window is open.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from sys import getrefcount
from typing import Any, NamedTuple

import torch
from torch import nn

from gradlab.hooks.call_hooks import CallHook, Hook, is_compiled, is_scripted
from gradlab.sites.names import unwrapped

# Three to eight times cheaper than the public record_function, and filed under operators, where TensorBoard looks.
Range: Any = getattr(torch._C._profiler, "_RecordFunctionFast", torch.autograd.profiler.record_function)

STEP = "ProfilerStep#"
UNFINISHED = "unfinished step "
"""A step of which a trace has only a part: its mark is renamed, so that nobody averages over it."""
STEP_BODY = "[pl][profile]train_step"
DATA = "enumerate(DataLoader)#gradlab.__next__"


class Module(NamedTuple):
    """A marked module: its qualified name ("" for the model itself) and the name of its class."""

    name: str
    kind: str

    @property
    def mark(self) -> str:
        """The range's name in the trace, as TensorBoard's module view spells it; the model goes by its class."""
        return f"[pl][module]{self.kind}: {self.name or self.kind}"


def eager_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that runs eagerly, with its qualified name, parents first, shared ones once.

    Compiled and scripted modules are left out together with what is inside them: a Python hook there would break
    their graph, and nothing inside runs through `__call__`.
    """
    return ((name, module) for name, module in _outside_graphs(model) if not is_compiled(module))


def compiled_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The compiled modules that eager ones call, each a box of its own, with their qualified names."""
    outside = _outside_graphs(model)
    return ((name, module) for name, module in outside if is_compiled(module) and not is_scripted(module))


def _outside_graphs(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    todo = [("", model)]
    while todo:
        name, module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        if not is_compiled(module):
            children = [(f"{name}.{child}" if name else child, inner) for child, inner in module._modules.items()]
            todo.extend((name, inner) for name, inner in reversed(children) if inner is not None)


class ModuleMarks:
    """A range around each forward of each eager module of `model`, between `attach` and `detach`.

    A compiled module has one around its call, from outside its graph: what is in it is one box.

    Cost: about 2 microseconds a module call while attached, nothing afterwards: no hook is left.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._boxes: list[_Box] = []
        self.modules: dict[str, Module] = {}
        """What each range's name stands for."""

    def attach(self) -> None:
        """Put the hooks in."""
        ranges = _OpenRanges()
        for name, module in eager_modules(self._model):
            described = Module(name, type(module).__name__)
            self.modules[described.mark] = described
            begin = _Begin(module, described.mark, ranges)
            self._handles.append(module.register_forward_pre_hook(begin, prepend=True))
            # always_call: a forward that raises must not leave its range open around the rest of the step.
            self._handles.append(module.register_forward_hook(_End(module, ranges), always_call=True))
        for name, module in compiled_modules(self._model):
            described = Module(name, f"{type(unwrapped(module)).__name__} (compiled)")
            self.modules[described.mark] = described
            box = _Box(module, described.mark)
            box.install()
            self._boxes.append(box)

    def detach(self) -> None:
        """Take the hooks out. May be called twice."""
        while self._handles:
            self._handles.pop().remove()
        while self._boxes:
            self._boxes.pop().remove()


class _OpenRanges(threading.local):
    """The ranges that are open on this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


class _Box(CallHook):
    """Puts a range around the call of one compiled module."""

    __slots__ = ("mark",)

    def __init__(self, module: nn.Module, mark: str) -> None:
        super().__init__(module)
        self.mark = mark

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        with Range(self.mark):
            return self.inner(*args, **kwargs)


class _Begin(Hook):
    def __init__(self, module: nn.Module, mark: str, ranges: _OpenRanges) -> None:
        self.module, self.mark, self.ranges = module, mark, ranges

    def __call__(self, module: nn.Module, args: Any) -> None:
        if module is not self.module:
            return
        if torch.compiler.is_compiling():  # called from inside somebody's compiled function: stay out of its graph
            return
        opened = Range(self.mark)
        opened.__enter__()
        self.ranges.stack.append(opened)


class _End(Hook):
    def __init__(self, module: nn.Module, ranges: _OpenRanges) -> None:
        self.module, self.ranges = module, ranges

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.module and self.ranges.stack and not torch.compiler.is_compiling():
            self.ranges.stack.pop().__exit__(None, None, None)
