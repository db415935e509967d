"""A quiet model: what happens inside leaves no trace in the training that goes on around it.

Random numbers, train and eval modes, buffers, attributes that a forward sets, `requires_grad` and `.grad` are
afterwards what they were before, bit for bit. gradlab's own hooks look away. Forward hooks of others run, since they
may be part of what the model computes; their module backward hooks do not, nor the gradient hooks of the parameter that
is differentiated by.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradlab.errors import JacobianError
from gradlab.taps.quiet import muting
from gradlab.taps.sites import unwrapped

Mode = Literal["eval", "as_is"]
"""`eval`: no dropout, running statistics. `as_is`: the modes that the modules are in, with fresh random numbers."""


@contextmanager
def quiet(model: nn.Module, *, mode: Mode = "eval", parameter: nn.Parameter | None = None) -> Iterator[nn.Module]:
    """While open, the model inside any wrappers may be run and differentiated without a trace.

    Args:
        model: wrapped (DDP, compile) or not; compiled modules run eagerly.
        mode: the modes that modules run in.
        parameter: the one parameter that is to require grad. All others are frozen, so nothing before the tensor that a
            Jacobian is taken by builds a graph, and nothing accumulates anywhere.
    Yields:
        The module to call.
    Raises:
        JacobianError: if the model still has parameters without a shape.
    Cost: one copy of the buffers, and about 5 microseconds a module.
    """
    core = unwrapped(model)
    modules, parameters = list(core.modules()), list(core.parameters())
    if any(is_lazy(p) for p in parameters):
        raise JacobianError("the model has lazy parameters without a shape; run one forward before taking a Jacobian.")
    with ExitStack() as stack:
        stack.enter_context(muting())
        stack.enter_context(torch.inference_mode(False))
        devices = {p.device for p in parameters}
        stack.enter_context(_random_numbers_kept(devices))
        for device_type in {device.type for device in devices} - {"meta"} | {"cpu"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_eager())
        stack.enter_context(_modules_kept(modules, mode))
        stack.enter_context(_only_one_requires_grad(parameters, parameter))
        yield core


@contextmanager
def _random_numbers_kept(devices: set[torch.device]) -> Iterator[None]:
    """Torch on the CPU and these devices, Python and NumPy."""
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device_type in {device.type for device in devices} - {"cpu", "meta"}:
            indices = {device.index or 0 for device in devices if device.type == device_type}
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=device_type))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


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


@contextmanager
def _modules_kept(modules: list[nn.Module], mode: Mode) -> Iterator[None]:
    """Every module works on copies of its buffers, and gets back the attributes that it had."""
    scripted = [m for m in modules if isinstance(m, torch.jit.ScriptModule)]
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    attributes = [(m, dict(vars(m))) for m in plain]
    registers: list[tuple[Any, dict[str, Any]]] = [
        (register, dict(register)) for m in plain for register in (m._parameters, m._buffers, m._modules)
    ]
    with _scripted_kept(scripted, mode):
        try:
            copies: dict[int, Tensor] = {}
            for module in plain:
                _lift_backward_hooks(module)
                _copy_buffers(module, copies)
                if mode == "eval":
                    _to_eval(module)
            yield
        finally:
            for register, before in registers:
                register.clear()
                register.update(before)
            for module, before in attributes:
                now = vars(module)
                for name in now.keys() - before.keys():
                    del now[name]
                now.update(before)


def _lift_backward_hooks(module: nn.Module) -> None:
    """Empty dictionaries in place of the registered ones, which `attributes` brings back."""
    vars(module)["_backward_hooks"] = OrderedDict()
    vars(module)["_backward_pre_hooks"] = OrderedDict()


def _copy_buffers(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Shared buffers stay shared. The originals are not written to, so graphs that saved them stay valid."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())


def _to_eval(module: nn.Module) -> None:
    # Set directly: a model may override `train` to do more than that.
    module.training = False
    if isinstance(module, nn.RNNBase):
        # cuDNN has no backward in eval mode; without dropout both modes compute the same.
        module.training, module.dropout = True, 0.0


@contextmanager
def _scripted_kept(modules: list[Any], mode: Mode) -> Iterator[None]:
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


@contextmanager
def _only_one_requires_grad(parameters: list[nn.Parameter], parameter: nn.Parameter | None) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in parameters if p.is_leaf]
    hooks = None if parameter is None else parameter._backward_hooks
    try:
        for p, _ in flags:
            p.requires_grad_(p is parameter)
        if parameter is not None:
            parameter._backward_hooks = None  # A hook that clips would clip the Jacobian.
        yield
    finally:
        if parameter is not None:
            parameter._backward_hooks = hooks
        for p, was in flags:
            p.requires_grad_(was)
