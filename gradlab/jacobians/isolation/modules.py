"""The state of modules, kept as it was: modes, buffers, attributes that a forward sets, and backward hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

ModuleMode = Literal["eval", "as_is"]
"""`eval`: no dropout, running statistics. `as_is`: the modes that the modules are in, with fresh random numbers."""


@contextmanager
def modules_kept(modules: list[nn.Module], mode: ModuleMode) -> Iterator[None]:
    """Every module works on copies of its buffers, and gets back the attributes that it had."""
    scripted = [m for m in modules if isinstance(m, torch.jit.ScriptModule)]
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)] if scripted else modules
    attributes = [(vars(m), dict(vars(m))) for m in plain]
    registers: list[tuple[Any, dict[str, Any]]] = [
        (register, dict(register)) for m in plain for register in (m._parameters, m._buffers, m._modules)
    ]
    with _scripted_kept(scripted, mode) if scripted else nullcontext():
        try:
            copies: dict[int, Tensor] = {}
            for module in plain:
                _without_backward_hooks(module)
                if module._buffers:
                    _copy_buffers(module, copies)
                if mode == "eval":
                    _to_eval(module)
            yield
        finally:
            for register, before in registers:
                register.clear()
                register.update(before)
            for now, before in attributes:
                for name in now.keys() - before.keys():
                    del now[name]
                now.update(before)


def _without_backward_hooks(module: nn.Module) -> None:
    """Put empty dictionaries in the place of the registered ones, which come back with the attributes."""
    if module._backward_hooks:
        vars(module)["_backward_hooks"] = OrderedDict()
    if module._backward_pre_hooks:
        vars(module)["_backward_pre_hooks"] = OrderedDict()


def _copy_buffers(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Shared buffers stay shared. The originals are not written to, so graphs that saved them stay valid."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())


def _to_eval(module: nn.Module) -> None:
    # Set directly: a model may override `train` to do more than that.
    vars(module)["training"] = False
    if isinstance(module, nn.RNNBase):
        # cuDNN has no backward in eval mode; without dropout both modes compute the same.
        module.training, module.dropout = True, 0.0


@contextmanager
def _scripted_kept(modules: list[Any], mode: ModuleMode) -> Iterator[None]:
    """Script modules keep their state in C++: it is written back where it changed."""
    training = [module.training for module in modules]
    buffers = [(b, b.detach().clone(), b._version) for module in modules for b in module.buffers(recurse=False)]
    try:
        if mode == "eval":
            for module in modules:
                module.training = False
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
        with torch.no_grad():
            for buffer, copy, version in buffers:
                if buffer._version != version:
                    buffer.copy_(copy)
