"""Hooks of an optimizer whose `step` is compiled: they run as Python, before and after the graph of the step.

`torch.compile` traces what it meets, hooks on optimizers included; of ours, a graph can hold nothing. So a hook that
is being traced breaks the graph and runs outside of it: an optimizer of torch's breaks it at the same place by itself,
and what is compiled of the step is what is compiled of it unwatched. Under `fullgraph=True`, where nothing may break,
the call of the compiled graph is surrounded by the hooks, and the graph stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradlab.errors import warn

is_traced = torch.compiler.is_dynamo_compiling
"""Whether the code that asks is being traced by `torch.compile`, for which the answer is a constant."""


def outside_graph(owner: Any, name: str, optimizer: Any, args: Any, kwargs: Any) -> Any:
    """Call `owner.name(optimizer, args, kwargs)` outside of the graph that is being traced; gives what it gives."""
    result: list[Any] = [None]
    _break_here(owner, name, optimizer, lambda: _call(owner, name, optimizer, args, kwargs, result))
    return result[0]


def _break_here(owner: Any, name: str, optimizer: Any, call: Callable[[], None]) -> None:
    """Its own variables, which Dynamo is asked for, are of no closure."""
    from torch._dynamo.comptime import comptime

    comptime(_break_or_surround, call)


class untraced:
    """`with untraced():` runs code whose calls Dynamo would else trace one by one: a frame that it leaves alone is
    within what it compiles all the same. What `torch.compiler.disable` does, at a tenth of a microsecond."""

    __slots__ = ("_callback",)

    def __enter__(self) -> None:
        if is_traced():  # a frame that Dynamo has not left alone: a hook that the engine calls, say
            _leave_alone()
        self._callback = _set_eval_frame(None)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _set_eval_frame(self._callback)


_set_eval_frame: Callable[[Any], Any] = torch._C._dynamo.eval_frame.set_eval_frame


def _call(owner: Any, name: str, optimizer: Any, args: Any, kwargs: Any, result: list[Any]) -> None:
    with untraced():
        result[0] = getattr(owner, name)(optimizer, args, kwargs)


def _break_or_surround(context: Any) -> None:
    """Called by Dynamo while it traces `_break_here`: break the graph, or surround it where it may not break."""
    try:
        tracer = context._ComptimeContext__tx
        root = tracer
        while getattr(root, "parent", None) is not None:
            root = root.parent
        if root.one_graph:
            value = {name: _value(tracer.symbolic_locals[name]) for name in ("owner", "name", "optimizer")}
            compiler = tracer.output.compiler_fn
            tracer.output.compiler_fn = _surrounding(compiler, value["owner"], value["name"], value["optimizer"])
            return
    except Exception as error:  # a torch whose insides are others
        warn(f"this compiled step is not seen: {type(error).__name__}: {error}")
        return
    context.graph_break("gradlab reads the parameters")


def _leave_alone() -> None:
    """While Dynamo traces: it shall run this frame as it is."""
    from torch._dynamo.comptime import comptime

    comptime(_break)


def _break(context: Any) -> None:
    context.graph_break("gradlab's own work")


def _value(variable: Any) -> Any:
    """The object that Dynamo traces as this variable."""
    variable = variable.realize()
    return variable.as_python_constant() if variable.is_python_constant() else variable.value


def _surrounding(compiler: Callable[..., Any], owner: Any, name: str, optimizer: Any) -> Callable[..., Any]:
    """A backend whose graphs call a hook before or after they run: that of a pre-hook before, that of others after."""

    def compile_graph(graph: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
        compiled = compiler(graph, inputs, **options)
        hook = getattr(owner, name)

        def run(*args: Any) -> Any:
            if name.startswith("before"):
                hook(optimizer, (optimizer,), {})
                return compiled(*args)
            result = compiled(*args)
            owner.graph_ran(optimizer)
            hook(optimizer, (optimizer,), {})
            return result

        return run

    return compile_graph
