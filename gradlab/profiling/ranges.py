"""Ranges around the forwards of modules in a trace, by hooks that are in place during a window only.

Belongs here: which modules have a range, and the hooks that open and close it. Does not: what ranges are called
(`analysis/events.py`), and the ranges around steps (recording.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from sys import getrefcount
from typing import Any

import torch
from torch import nn

from gradlab.hooks.call_hooks import CallHook, Hook, is_compiled, is_scripted
from gradlab.profiling.analysis.events import ProfiledModule
from gradlab.sites.names import unwrapped

# Three to eight times cheaper than the public record_function, and filed under operators, where TensorBoard looks.
Range: Any = getattr(torch._C._profiler, "_RecordFunctionFast", torch.autograd.profiler.record_function)


def eager_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that runs eagerly, with its qualified name, parents first, shared ones once.

    Compiled and scripted modules are left out together with what is inside them: a Python hook there would break
    their graph, and nothing inside runs through `__call__`.
    """
    return ((name, module) for name, module in _outside_graphs(model) if not is_compiled(module))


def compiled_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The compiled modules that eager ones call, with their qualified names."""
    outside = _outside_graphs(model)
    return ((name, module) for name, module in outside if is_compiled(module) and not is_scripted(module))


def _outside_graphs(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    unvisited = [("", model)]
    while unvisited:
        name, module = unvisited.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        if not is_compiled(module):
            children = [(f"{name}.{child}" if name else child, inner) for child, inner in module._modules.items()]
            unvisited.extend((name, inner) for name, inner in reversed(children) if inner is not None)


class ModuleRanges:
    """A range around each forward of each eager module of `model`, between `attach` and `detach`.

    A compiled module has one around its call, from outside its graph: no module inside it has a range of its own.

    Cost: about 2 microseconds a module call while attached, nothing afterwards: no hook is left.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._compiled: list[_CompiledModuleRange] = []
        self.modules: dict[str, ProfiledModule] = {}
        """The module behind each range's name."""

    def attach(self) -> None:
        """Put the hooks in."""
        ranges = _OpenRanges()
        for name, module in eager_modules(self._model):
            profiled = ProfiledModule(name, type(module).__name__)
            self.modules[profiled.range_name] = profiled
            begin = _Begin(module, profiled.range_name, ranges)
            self._handles.append(module.register_forward_pre_hook(begin, prepend=True))
            # always_call: a forward that raises must not leave its range open around the rest of the step.
            self._handles.append(module.register_forward_hook(_End(module, ranges), always_call=True))
        for name, module in compiled_modules(self._model):
            profiled = ProfiledModule(name, f"{type(unwrapped(module)).__name__} (compiled)")
            self.modules[profiled.range_name] = profiled
            hook = _CompiledModuleRange(module, profiled.range_name)
            hook.install()
            self._compiled.append(hook)

    def detach(self) -> None:
        """Take the hooks out. May be called twice."""
        while self._handles:
            self._handles.pop().remove()
        while self._compiled:
            self._compiled.pop().remove()


class _OpenRanges(threading.local):
    """The ranges that are open on this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


class _CompiledModuleRange(CallHook):
    """Puts a range around the call of one compiled module."""

    __slots__ = ("range_name",)

    def __init__(self, module: nn.Module, range_name: str) -> None:
        super().__init__(module)
        self.range_name = range_name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if getrefcount(self) != self.references and (copied := self.call_of_copy()) is not None:
            return copied(*args, **kwargs)
        with Range(self.range_name):
            return self.inner(*args, **kwargs)


class _Begin(Hook):
    """Opens the range of one module before its forward."""

    def __init__(self, module: nn.Module, range_name: str, ranges: _OpenRanges) -> None:
        self.module, self.range_name, self.ranges = module, range_name, ranges

    def __call__(self, module: nn.Module, args: Any) -> None:
        if module is not self.module:
            return
        if torch.compiler.is_compiling():  # called from inside somebody's compiled function: stay out of its graph
            return
        opened = Range(self.range_name)
        opened.__enter__()
        self.ranges.stack.append(opened)


class _End(Hook):
    """Closes the range of one module after its forward."""

    def __init__(self, module: nn.Module, ranges: _OpenRanges) -> None:
        self.module, self.ranges = module, ranges

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.module and self.ranges.stack and not torch.compiler.is_compiling():
            self.ranges.stack.pop().__exit__(None, None, None)
