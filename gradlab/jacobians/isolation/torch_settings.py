"""Settings of torch that would change what a forward computes or hide tensors: switched off for as long as a replay.

Belongs here: autocast, inference mode, compilation, fused fast paths, selective checkpointing. Does not: what belongs
to a module (`modules`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch


@contextmanager
def plain_torch(devices: set[torch.device]) -> Iterator[None]:
    """While open, this thread computes in plain eager mode.

    Args:
        devices: those of the model's parameters.
    """
    with _plain_checkpoints(), _plain_numbers(devices), _eager():
        yield


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """Selective checkpointing of this thread saves nothing, so that its graph can be gone through more than once.

    What it saves of a forward serves one backward only; recomputed, it is the same for each.
    """
    module: Any = sys.modules.get("torch.utils.checkpoint")
    kinds = [getattr(module, name, None) for name in ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")]
    thread = get_ident()

    def plain(original: Callable[..., Any]) -> Callable[..., Any]:
        def dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if get_ident() == thread:
                return func(*args, **(kwargs or {}))
            return original(mode, func, types, args, kwargs)

        return dispatch

    originals = [(kind, kind.__torch_dispatch__) for kind in kinds if kind is not None]
    for kind, original in originals:
        kind.__torch_dispatch__ = plain(original)
    try:
        yield
    finally:
        for kind, original in originals:
            kind.__torch_dispatch__ = original


@contextmanager
def _plain_numbers(devices: set[torch.device]) -> Iterator[None]:
    """Neither inference mode nor autocast."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in {device.type for device in devices} - {"meta"} | {"cpu"}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def _eager() -> Iterator[None]:
    """Neither compiled graphs nor the fused encoder layers, both of which hide the tensors inside."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if "torch._dynamo" in sys.modules:  # Importing it takes a second; without it nothing is compiled.
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
