"""An isolated model: what happens inside leaves no trace in the training that goes on around it.

Random numbers, train and eval modes, buffers, attributes that a forward sets, `requires_grad` and `.grad` are
afterwards what they were before, bit for bit. gradlab's own hooks are muted. Forward hooks of others run, since they
may be part of what the model computes; their module backward hooks do not, nor the gradient hooks of the parameters
that are differentiated by: the Jacobian is the derivative of the forward, not what hooks make of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradlab.errors import JacobianError
from gradlab.hooks.mute import muting
from gradlab.jacobians.isolation.fsdp import gathered
from gradlab.jacobians.isolation.modules import ModuleMode, modules_kept
from gradlab.jacobians.isolation.randomness import random_numbers_kept
from gradlab.jacobians.isolation.torch_settings import plain_torch
from gradlab.sites.names import all_modules, unwrapped


@contextmanager
def isolated(
    model: nn.Module,
    *,
    mode: ModuleMode = "eval",
    requires_grad: Callable[[nn.Module], Sequence[nn.Parameter | None]] = lambda core: (),
) -> Iterator[nn.Module]:
    """While open, the model inside any wrappers may be run and differentiated without a trace.

    Args:
        model: wrapped (DDP, compile) or not; compiled modules run eagerly.
        mode: the modes that modules run in.
        requires_grad: from the module to the parameters that are to require grad. All others are frozen, so nothing
            before the tensor that a Jacobian is taken by builds a graph, and nothing accumulates anywhere.
    Yields:
        The module to call.
    Raises:
        JacobianError: if the model still has parameters without a shape.
    Cost: one copy of the buffers, and about 3 microseconds a module.
    """
    core = unwrapped(model)
    with gathered(core), _isolated(core, mode, requires_grad):
        yield core


@contextmanager
def _isolated(
    core: nn.Module, mode: ModuleMode, requires_grad: Callable[[nn.Module], Sequence[nn.Parameter | None]]
) -> Iterator[None]:
    modules = list(all_modules(core))
    parameters = list({id(p): p for module in modules for p in _own_parameters(module)}.values())
    if any(is_lazy(p) for p in parameters):
        raise JacobianError("the model has lazy parameters without a shape; run one forward before taking a Jacobian.")
    devices = {p.device for p in parameters}
    wanted = [p for p in requires_grad(core) if p is not None]
    with (
        muting(),
        random_numbers_kept(devices),
        plain_torch(devices),
        modules_kept(modules, mode),
        _only_these_require_grad(parameters, wanted),
    ):
        yield


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.parameters(recurse=False))
    return [p for p in module._parameters.values() if p is not None]


@contextmanager
def _only_these_require_grad(parameters: list[nn.Parameter], wanted: list[nn.Parameter]) -> Iterator[None]:
    """Only the wanted parameters require grad, without their gradient hooks."""
    flags = [(p, p.requires_grad) for p in parameters if p.is_leaf]
    ids = {id(p) for p in wanted}
    hooks = [(p, p._backward_hooks) for p in wanted]
    try:
        for p, was in flags:
            if was is not (id(p) in ids):
                p.requires_grad_(not was)
        for p in wanted:
            p._backward_hooks = None  # A hook that clips would clip the Jacobian.
        yield
    finally:
        for p, its in hooks:
            p._backward_hooks = its
        for p, was in flags:
            if p.requires_grad is not was:
                p.requires_grad_(was)
