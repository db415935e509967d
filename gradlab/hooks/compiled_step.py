"""Optimizer hooks under `torch.compile`: where a `step` is compiled, they run as Python before and after its graph.

`torch.compile` traces the hooks of an optimizer with its `step`, and of ours a graph can hold nothing. So a hook that
is being traced breaks the graph and runs outside of it. An optimizer of torch's breaks the graph at the same place by
itself, so that the same is compiled as without gradlab. Under `fullgraph=True`, where nothing may break, the backend is
wrapped: the compiled graph is called between the hooks, and stays as it is.

Not here: what the hooks do (`monitor.steps`), or models that are compiled (`taps.forward.compiled`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradlab.errors import warn

is_traced = torch.compiler.is_dynamo_compiling
"""Whether `torch.compile` is tracing the code that calls this; a constant to it, so that it traces one branch alone."""


def outside_graph(owner: Any, name: str, optimizer: Any, args: Any, kwargs: Any) -> Any:
    """Call `owner.name(optimizer, args, kwargs)` outside of the graph that is being traced, and return what it does."""
    result: list[Any] = [None]
    _leave_graph(owner, name, optimizer, lambda: _call(owner, name, optimizer, args, kwargs, result))
    return result[0]


def _leave_graph(owner: Any, name: str, optimizer: Any, call: Callable[[], None]) -> None:
    """A function of its own, since Dynamo is asked for its variables, which must not be those of a closure."""
    from torch._dynamo.comptime import comptime

    comptime(_break_or_wrap, call)


class untraced:
    """`with untraced():` keeps Dynamo from tracing the functions that are called inside.

    Where Dynamo does not compile a frame, it still tries to compile each function that the frame calls. Does what
    `torch.compiler.disable` does, at a tenth of a microsecond.
    """

    __slots__ = ("_callback",)

    def __enter__(self) -> None:
        if is_traced():  # by a frame that Dynamo compiles, such as that of a hook that the engine calls
            _break_graph()
        self._callback = _set_eval_frame(None)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _set_eval_frame(self._callback)


_set_eval_frame: Callable[[Any], Any] = torch._C._dynamo.eval_frame.set_eval_frame


def _call(owner: Any, name: str, optimizer: Any, args: Any, kwargs: Any, result: list[Any]) -> None:
    with untraced():
        result[0] = getattr(owner, name)(optimizer, args, kwargs)


def _break_or_wrap(context: Any) -> None:
    """Called by Dynamo while it traces `_leave_graph`: break the graph, or wrap the backend where it may not break."""
    try:
        tracer = context._ComptimeContext__tx
        root = tracer
        while getattr(root, "parent", None) is not None:
            root = root.parent
        if root.one_graph:
            value = {name: _value(tracer.symbolic_locals[name]) for name in ("owner", "name", "optimizer")}
            compiler = tracer.output.compiler_fn
            tracer.output.compiler_fn = _with_hooks(compiler, value["owner"], value["name"], value["optimizer"])
            return
    except Exception as error:  # a torch whose insides are others
        warn(f"this compiled step is not seen: {type(error).__name__}: {error}")
        return
    context.graph_break("gradlab reads the parameters")


def _break_graph() -> None:
    """Traced by Dynamo: end the graph here."""
    from torch._dynamo.comptime import comptime

    comptime(_break)


def _break(context: Any) -> None:
    context.graph_break("gradlab's own work")


def _value(variable: Any) -> Any:
    """The object that Dynamo traces as this variable."""
    variable = variable.realize()
    return variable.as_python_constant() if variable.is_python_constant() else variable.value


def _with_hooks(compiler: Callable[..., Any], owner: Any, name: str, optimizer: Any) -> Callable[..., Any]:
    """A backend whose graphs call the hook `owner.name` before they run, where its name begins so, or else after."""

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
