"""The state of the interpreter around a hook: whether it may record at all, and how ops of gradlab's own are run.

A hook runs in the middle of somebody else's code, under whatever that code has switched on. What follows from it is
decided here, once, for every place where gradlab puts a hook in (`tests/hooks/test_interpreter.py` lists them):

1. **Where tensors have no values, a hook records nothing** (`must_not_record`): while a graph is compiled, exported,
   traced or scripted, inside a transform of functorch (vmap, grad, jvp), under a mode that makes fake tensors or
   records a graph of its own (make_fx); nor while gradlab itself runs the model (`mute`). No op of ours is run there,
   and what is compiled or exported is what it would be without gradlab.
2. **Ops of gradlab's own run outside of the modes of others** (`own_ops`, and `outside_modes` around whatever runs the
   model itself). A function mode or dispatch mode sees each op that is called while it is on: a counter of FLOPs would
   count ours, and selective checkpointing would hand one of our results to the recomputation in place of the model's.
3. **What belongs to a forward belongs to its thread** (`threading.local`, in `taps.forward.modules` and
   `taps.backward.recorder`): another thread may call the same model at any moment. What belongs to a backward belongs
   to its task of the engine (`autograd_engine.task_id`).

A recomputation under activation checkpointing is no state of its own: hooks run in it as in a forward, and the recorder
knows by the engine's task what they repeat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._device import DeviceContext

from gradlab.autograd_engine import functorch_level
from gradlab.hooks import mute, own_ranges

_is_compiling = torch.compiler.is_compiling
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_is_batched: Callable[[Any], bool] = torch._C._functorch.is_legacy_batchedtensor
num_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes would see an op that is called now. Cost: 0.04 microseconds, as of `has_function_modes`."""
has_function_modes: Callable[[], bool] = torch._C._is_torch_function_mode_enabled
"""Whether a function mode would see a torch function that is called now, gradlab's own included."""
_num_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
pop_function_mode: Callable[[], Any] = torch._C._pop_torch_function_stack
"""Takes off the innermost function mode, and gives it."""
push_function_mode: Callable[[Any], None] = torch._C._push_on_torch_function_stack
"""Puts a function mode on, as the innermost."""
without_torch_function: Any = torch._C.DisableTorchFunction
"""`with without_torch_function():` what is asked of a tensor inside is seen by no function mode, as a torch function of
the user's would be, nor by the tensor's own class."""
_pop_dispatch_mode: Callable[[None], Any] = torch._C._pop_torch_dispatch_stack
_push_dispatch_mode: Callable[[Any], None] = torch._C._push_on_torch_dispatch_stack
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
_GRAPH_MODES = tuple(
    getattr(torch._C._TorchDispatchModeKey, name)
    for name in ("FAKE", "PROXY", "FUNCTIONAL")
    if hasattr(torch._C._TorchDispatchModeKey, name)
)


def must_not_record() -> bool:
    """Whether a hook of gradlab's has to do nothing: tensors have no values now, or gradlab itself runs the model.

    Cost: about 0.2 microseconds. The first question is one that `torch.compile` answers while it traces, so that the
    rest of a hook is no part of a graph.
    """
    return (
        _is_compiling()
        or mute.depth > 0
        or _is_tracing()
        or functorch_level() is not None
        or (num_dispatch_modes() > 0 and _is_in_graph_mode())
    )


def in_functorch() -> bool:
    """Whether a transform of functorch is at work: a tensor in it is many at once, or carries a derivative."""
    return functorch_level() is not None


def is_batched(gradient: Any) -> bool:
    """Whether a gradient is those of many vectors at once, as under `autograd.grad(is_grads_batched=True)`.

    That is an older vmap than functorch's, without a level that could be asked for.
    """
    return gradient is not None and bool(_is_batched(gradient))


def in_symbolic_trace() -> bool:
    """Whether `torch.fx.symbolic_trace` runs the model on proxies."""
    tracer = sys.modules.get("torch.fx._symbolic_trace")
    return tracer is not None and bool(getattr(tracer, "_is_fx_tracing_flag", False))


def _is_in_graph_mode() -> bool:
    """Whether a dispatch mode makes fake tensors or records a graph."""
    return any(torch._C._get_dispatch_mode(key) is not None for key in _GRAPH_MODES)


def in_selective_checkpoint() -> bool:
    """Whether this forward runs under selective activation checkpointing, as its first time."""
    stack = (torch._C._get_dispatch_stack_at(place) for place in range(num_dispatch_modes()))
    return any(type(mode).__name__ == "_CachingTorchDispatchMode" for mode in stack)


class outside_modes:
    """`with outside_modes():` takes off all function and dispatch modes of others; those entered inside do work.

    For whatever of gradlab's runs the user's model, and so may need modes of its own. The default device
    (`torch.set_default_device`) is a function mode too, and stays: a model may count on it. Tensor subclasses are what
    they were. Not torch's own context for dispatch modes, which imports the machinery of export, and not
    `_DisableTorchDispatch`, under which the ops of tensor subclasses do not work.
    """

    __slots__ = ("_dispatch", "_function", "_kept")

    def __enter__(self) -> None:
        self._dispatch: Sequence[Any] = [_pop_dispatch_mode(None) for _ in range(num_dispatch_modes())]
        self._function: Sequence[Any] = [pop_function_mode() for _ in range(_num_function_modes())]
        self._kept: Sequence[Any] = [mode for mode in self._function if type(mode) is DeviceContext]
        for mode in reversed(self._kept):
            push_function_mode(mode)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for _ in self._kept:
            pop_function_mode()
        for mode in reversed(self._function):
            push_function_mode(mode)
        for mode in reversed(self._dispatch):
            _push_dispatch_mode(mode)


class own_ops:
    """`with own_ops():` runs ops of gradlab's own, such as reductions: no mode sees them, and they build no graph.

    In a profile window they have a range of their own. Cost: half a microsecond, where there are no modes.
    """

    __slots__ = ("_dispatch", "_grad", "_no_function", "_range")

    def __enter__(self) -> None:
        self._range = None if own_ranges.make is None else own_ranges.make(own_ranges.OWN_WORK)
        if self._range is not None:
            self._range.__enter__()
        count = num_dispatch_modes()
        self._dispatch: Sequence[Any] = [_pop_dispatch_mode(None) for _ in range(count)] if count else ()
        self._no_function = without_torch_function()
        self._no_function.__enter__()
        self._grad = torch.is_grad_enabled()
        _set_grad_enabled(False)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _set_grad_enabled(self._grad)
        self._no_function.__exit__(None, None, None)
        for mode in reversed(self._dispatch):
            _push_dispatch_mode(mode)
        if self._range is not None:
            self._range.__exit__(None, None, None)
