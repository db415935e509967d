"""Named ranges in a trace: one around each module's forward, by hooks that live no longer than a window.

Belongs here: what a range is called, and where the hooks go. Does not: when a window is open.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from gradlab.taps.stand import PLACE, Hook, beneath

# Three to eight times cheaper than the public record_function, and filed under operators, where TensorBoard looks.
Range: Any = getattr(torch._C._profiler, "_RecordFunctionFast", torch.autograd.profiler.record_function)

STEP = "ProfilerStep#"
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
    seen: set[int] = set()
    todo = [("", model)]
    while todo:
        name, module = todo.pop()
        if id(module) in seen or is_compiled(module):
            continue
        seen.add(id(module))
        yield name, module
        children = [(f"{name}.{child}" if name else child, inner) for child, inner in module.named_children()]
        todo.extend(reversed(children))


def is_compiled(module: nn.Module) -> bool:
    """Whether a Python hook in a module would break a graph or never run."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
        return True
    return beneath(getattr(module, PLACE, None)) is not None


class ModuleMarks:
    """A range around each forward of each eager module of `model`, between `attach` and `detach`.

    Cost: about 2 microseconds a module call while attached, nothing afterwards: no hook is left.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self.modules: dict[str, Module] = {}
        """What each range's name stands for."""

    def attach(self) -> None:
        """Put the hooks in."""
        ranges = _OpenRanges()
        for name, module in eager_modules(self._model):
            described = Module(name, type(module).__name__)
            self.modules[described.mark] = described
            begin = _Begin(described.mark, ranges)
            self._handles.append(module.register_forward_pre_hook(begin, prepend=True))
            # always_call: a forward that raises must not leave its range open around the rest of the step.
            self._handles.append(module.register_forward_hook(_End(ranges), always_call=True))

    def detach(self) -> None:
        """Take the hooks out. May be called twice."""
        while self._handles:
            self._handles.pop().remove()


class _OpenRanges(threading.local):
    """The ranges that are open on this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


class _Begin(Hook):
    def __init__(self, mark: str, ranges: _OpenRanges) -> None:
        self.mark, self.ranges = mark, ranges

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # called from inside somebody's compiled function: stay out of its graph
            return
        opened = Range(self.mark)
        opened.__enter__()
        self.ranges.stack.append(opened)


class _End(Hook):
    def __init__(self, ranges: _OpenRanges) -> None:
        self.ranges = ranges

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.ranges.stack and not torch.compiler.is_compiling():
            self.ranges.stack.pop().__exit__(None, None, None)
