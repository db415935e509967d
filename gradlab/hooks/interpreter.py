"""The state of the interpreter around a hook: whether it may look at all, and how an op of gradlab's own is run.

A hook runs in the middle of somebody else's code, and inherits whatever that code has switched on. What follows from
it is decided here, once, for every entry point of gradlab (`tests/hooks/test_interpreter.py` lists them):

1. **Where a tensor is no value, a hook looks away** (`looks_away`): while a graph is compiled, exported, traced or
   scripted, inside a transform of functorch (vmap, grad, jvp), under a mode that makes fake tensors or records a graph
   of its own (make_fx), and while a probe of gradlab's runs the model. Nothing is recorded there, nothing is run, and
   the artefact is that of an unwatched model.
2. **An op of gradlab's own runs outside of the modes of others** (`own_ops`, and `outside_modes` around whatever runs
   the model itself): a function mode or dispatch mode sees
   each op that is called while it is on, ours too. A counter of FLOPs would count them, and selective checkpointing
   would hand one of our results to the recomputation in place of one of the model's.
3. **What belongs to a forward belongs to its thread** (`threading.local`, in `modules` and `recorder`): another
   thread may call the same model at any moment. What belongs to a backward belongs to its task of the engine.

A recomputation under checkpointing is no state of its own: hooks run in it as in a forward, and the recorder knows by
the engine's task what they repeat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._device import DeviceContext

from gradlab.autograd_engine import functorch_level
from gradlab.hooks import mute

_is_compiling = torch.compiler.is_compiling
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_is_batched: Callable[[Any], bool] = torch._C._functorch.is_legacy_batchedtensor
num_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes would see an op that is called now. Cost: 0.04 microseconds, as the next one."""
has_function_modes: Callable[[], bool] = torch._C._is_torch_function_mode_enabled
"""Whether a function mode would, gradlab's own watcher of ops included."""
_num_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_pop_function_mode: Callable[[], Any] = torch._C._pop_torch_function_stack
_push_function_mode: Callable[[Any], None] = torch._C._push_on_torch_function_stack
_pop_dispatch_mode: Callable[[None], Any] = torch._C._pop_torch_dispatch_stack
_push_dispatch_mode: Callable[[Any], None] = torch._C._push_on_torch_dispatch_stack
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
_GRAPH_MODES = tuple(
    getattr(torch._C._TorchDispatchModeKey, name)
    for name in ("FAKE", "PROXY", "FUNCTIONAL")
    if hasattr(torch._C._TorchDispatchModeKey, name)
)


def looks_away() -> bool:
    """Whether a hook of gradlab's has nothing to do here: tensors have no values now, or gradlab itself runs the model.

    Cost: about 0.2 microseconds. The first question is one that `torch.compile` answers while it traces, so that the
    rest of a hook is no part of a graph.
    """
    return (
        _is_compiling()
        or mute.depth > 0
        or _is_tracing()
        or functorch_level() is not None
        or (num_dispatch_modes() > 0 and _makes_a_graph())
    )


def in_functorch() -> bool:
    """Whether a transform of functorch is at work: its tensors stand for many, or carry a derivative."""
    return functorch_level() is not None


def is_batched(gradient: Any) -> bool:
    """Whether a gradient stands for those of many vectors at once, as under `autograd.grad(is_grads_batched=True)`.

    That is an older vmap than functorch's, without a level that could be asked for.
    """
    return gradient is not None and bool(_is_batched(gradient))


def in_symbolic_trace() -> bool:
    """Whether `torch.fx.symbolic_trace` runs the model on proxies."""
    tracer = sys.modules.get("torch.fx._symbolic_trace")
    return tracer is not None and bool(getattr(tracer, "_is_fx_tracing_flag", False))


def _makes_a_graph() -> bool:
    return any(torch._C._get_dispatch_mode(key) is not None for key in _GRAPH_MODES)


def in_selective_checkpoint() -> bool:
    """Whether this forward runs under selective activation checkpointing, as its first time."""
    stack = (torch._C._get_dispatch_stack_at(place) for place in range(num_dispatch_modes()))
    return any(type(mode).__name__ == "_CachingTorchDispatchMode" for mode in stack)


class outside_modes:
    """`with outside_modes():` takes all function modes and dispatch modes of others aside; those put on inside work.

    For whatever of gradlab's runs the user's model, and so may need modes of its own. The default device
    (`torch.set_default_device`) is a function mode too, and stays: a model may count on it. Tensor subclasses are what
    they were. Not torch's own context for dispatch modes, which imports the machinery of export, and not
    `_DisableTorchDispatch`, under which the ops of tensor subclasses do not work.
    """

    __slots__ = ("_dispatch", "_function", "_kept")

    def __enter__(self) -> None:
        self._dispatch: Sequence[Any] = [_pop_dispatch_mode(None) for _ in range(num_dispatch_modes())]
        self._function: Sequence[Any] = [_pop_function_mode() for _ in range(_num_function_modes())]
        self._kept: Sequence[Any] = [mode for mode in self._function if type(mode) is DeviceContext]
        for mode in reversed(self._kept):
            _push_function_mode(mode)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for _ in self._kept:
            _pop_function_mode()
        for mode in reversed(self._function):
            _push_function_mode(mode)
        for mode in reversed(self._dispatch):
            _push_dispatch_mode(mode)


class own_ops:
    """`with own_ops():` runs reductions of gradlab's own: seen by no mode, without a graph.

    Cost: half a microsecond, where there are no modes.
    """

    __slots__ = ("_dispatch", "_grad", "_no_function")

    def __enter__(self) -> None:
        count = num_dispatch_modes()
        self._dispatch: Sequence[Any] = [_pop_dispatch_mode(None) for _ in range(count)] if count else ()
        self._no_function = torch._C.DisableTorchFunction()
        self._no_function.__enter__()
        self._grad = torch.is_grad_enabled()
        _set_grad_enabled(False)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _set_grad_enabled(self._grad)
        self._no_function.__exit__(None, None, None)
        for mode in reversed(self._dispatch):
            _push_dispatch_mode(mode)
